"""Many prompts on many machines: `specrej.ray.generate_dataset` for Ray Data. It lives in
`specrej.batch.ray`.
"""

from specrej.batch.ray import generate_dataset

__all__ = ["generate_dataset"]
