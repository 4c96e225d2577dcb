"""One component: what its process is made of, and its life from load to stop."""
