"""Training benchmarks: NLCG and its competitors on the same networks and data."""
