"""How an ingress finds the decision on a request: in memory, by waiting, or in the decision log."""
