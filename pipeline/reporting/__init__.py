"""Runs as one page: what their folders tell, as tables and charts. Knows nothing of training or of a cluster."""
