"""Local stand-ins for the remote systems, for tests, demos and benchmarks.

Invariant: this package and `include` never import each other. A simulator is written from the page of its
system in docs/protocols, so that it does not share the mistakes of the client it is used to test.
"""
