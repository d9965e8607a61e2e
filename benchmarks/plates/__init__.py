"""What the plates' figures are made with: workloads, peers, a launcher that measures, servers and checks."""
