"""The run folder: its files, who may write to it, what it says of a run. Needs neither Lightning nor a cluster.

The folder is the truth: whoever launched a run, it alone says where the run stands, takes a request to stop, and lets
anyone go on.
"""
