"""A simulator of Globus: Auth tokens, and the Transfer service over collections that are folders of this machine."""
