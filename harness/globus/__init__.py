"""What tests and benchmarks of Globus share."""
