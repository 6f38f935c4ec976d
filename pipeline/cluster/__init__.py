"""The machines: tasks run over items, and workers that train together. The only home of ray.

`kind: none` runs tasks in this process, and workers as plain processes of this machine, or as those that a launcher
started; it never imports ray. `kind: local` starts Ray on this machine until the context ends, `kind: ray` joins a
running cluster.
"""
