"""Trained models as pipelines of Hugging Face diffusers: transformer, few-step scheduler and codec as parts.

from tvmatch.integrations.diffusers import TVMatchPipeline
images = TVMatchPipeline.from_pretrained("runs/digits/diffusers")(class_labels=["3", "7"]).images
"""

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError("diffusers is missing; its pipelines need: pip install 'tvmatch[export]'") from error

from tvmatch.integrations.diffusers.codec import TVMatchTinyCodec
from tvmatch.integrations.diffusers.pipeline import TVMatchPipeline
from tvmatch.integrations.diffusers.scheduler import TVMatchScheduler
from tvmatch.integrations.diffusers.transformer import TVMatchTransformer

__all__ = ["TVMatchPipeline", "TVMatchScheduler", "TVMatchTinyCodec", "TVMatchTransformer"]
