"""What a process tells on its standard error: one line an event, warnings with their rank."""

import logging
import warnings


def set_up(rank: int = 0) -> None:
    """Sets up logging for a process of the command line; those of other ranks than the first tell warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    pipeline = logging.getLogger("pipeline")
    pipeline.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    pipeline.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    pipeline.handlers = [handler]
    quiet_lightning()
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")  # only slower
    # Lightning 2.6 calls a function of torch's that torch has deprecated (`_pytree.py`), on every fit
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.pytorch\.utilities\._pytree")


def quiet_lightning() -> None:
    """Keeps Lightning from telling of itself; after its import, which sets its loggers up."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
