"""A pretrained model whose weights stay on disk and pass through a budget of memory, layer by layer.

Everything outside the blocks stays in memory, and so do as many layers as the budget allows, evenly spaced: on a cycle
longer than itself, a cache of the layers used last would never hold the next one. The other layers go in turn through a
few buffers that a thread fills ahead of the layer that is computed. Every layer is one call of the same compiled
program, whether it stayed or came from the disk, so that what the model says depends on no budget.

At batch 1 a token needs every weight once: its speed is bound by the bytes that are streamed over the bandwidth of what
holds them. Streaming buys memory and costs time.
"""

from lattice_jax.inference.streaming.model import StreamedModel, open_streamed

__all__ = ["StreamedModel", "open_streamed"]
