"""A plan that was not worked out."""

from pipeline.run.plan import Forecast

FORECAST = Forecast.model_validate(
    {
        "total_steps": 500,
        "steps_per_epoch": 200,
        "epochs": 2.5,
        "total_words": 500 * 720,
        "num_lanes": 36,
        "world_size": 4,
        "lanes_per_rank": 9,
        "parameters": {"embedding": 1, "recurrence": 2, "softmax": 3, "total": 6},
        "memory_bytes": {
            "weights": 24,
            "gradients": 24,
            "optimizer": 48,
            "activations": 900,
            "backward": 100,
            "total": 1096,
        },
        "device_memory_bytes": None,
        "checkpoint_bytes": 7_200_000,
        "checkpoint_every_steps": 50,
        "num_checkpoints": 4,
        "disk_bytes": 28_800_000,
        "free_bytes": None,
        "words_per_second": 100.0,
        "hours": 1.0,
        "price_per_hour": 3.0,
        "cost": 12.0,
        "measured": "given",
    }
)
