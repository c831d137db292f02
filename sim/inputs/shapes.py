"""Published model shapes: what makes attention workloads, and what else lives in a GPU's memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The shape of one published model.

    `layers` counts transformer layers; `heads` and `kv_heads` count query heads and key/value heads
    of one layer; `head_dim` is in elements. `context` is the published context length and `window`
    the sliding window, both in tokens; `window` is None unless every layer uses one. A model with
    latent attention caches `latent_dim` + `rope_dim` elements a token and layer, for all heads; its
    K have `head_dim` elements once made of them, its V `value_dim`. Of a model whose layers differ,
    `local_layers` see `local_window` tokens alone; workloads of it are those of the others.

    `hidden` is the width of the residual stream, `mlp` that of the MLP's inside, of one expert
    where there are several: a token passes through `experts_per_token`, of which all tokens share
    `shared_experts` and the others are of the `experts` that it is routed to. An MLP has
    `mlp_matrices` matrices of hidden x mlp: 3 where it is gated. `vocab` counts tokens; with
    `tied_embeddings` one matrix embeds and projects to logits. `parameters` counts all of them,
    `active_parameters` those that a token uses (all, unless there are experts).

    `source` says where the figures were published.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    mlp: int
    vocab: int
    parameters: int
    active_parameters: int
    context: int
    window: int | None
    source: str
    latent_dim: int | None = None
    rope_dim: int = 0
    value_dim: int | None = None
    local_layers: int = 0
    local_window: int | None = None
    mlp_matrices: int = 3
    experts: int = 1
    experts_per_token: int = 1
    shared_experts: int = 0
    tied_embeddings: bool = False

    @property
    def cached_elements(self) -> int:
        """Elements of the KV cache that a token has in a layer."""
        if self.latent_dim:
            return self.latent_dim + self.rope_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def missed_share(self) -> float:
        """The share of the experts that a token is not routed to."""
        return 1 - (self.experts_per_token - self.shared_experts) / self.experts

    @property
    def routed_parameters(self) -> int:
        """Those of the experts that tokens are routed to."""
        if self.experts == 1:
            return 0
        return round((self.parameters - self.active_parameters) / self.missed_share)

    def routed_parameters_used(self, tokens: int) -> float:
        """Those of them that so many tokens use in all, where each is routed by chance."""
        return self.routed_parameters * (1 - self.missed_share**tokens)
