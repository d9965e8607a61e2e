"""What tests and benchmarks share: servers, proxies, ways to break things and to look at what is left."""
