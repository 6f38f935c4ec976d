"""Causal transformer whose layers attend to the tokens of earlier windows too.

A layer's query attends to its own token and to exactly the `memory_size` before it, so that nothing depends on how the
text is cut into windows. What a lane carries is what each layer read of its last tokens, and how many there are: at a
text's start there are fewer. Where a token stands is told by its distance from the query alone (ALiBi).

Shape suffixes: K layers, M memory, C = K·M, T time, L lanes, R tokens that are read (memory and window), E input width,
H hidden, A heads, D width of a head.

Source: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (normalization below each part);
Dai et al. 2019, arXiv:1901.02860 (memory); Press et al. 2022, arXiv:2108.12409 (ALiBi).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import TransformerConfig
from pipeline.model.dropout import lane_dropout
from pipeline.model.recurrence import Recurrence, State, last_steps


class Transformer(Recurrence):
    """Layers with dropout below the first and on what each part adds; arguments as every `Recurrence`."""

    state_names = ("memory_CLH", "filled_1L1")

    def __init__(self, section: TransformerConfig, *, input_size: int, dropout: float) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.share = dropout
        self.num_sites = 1 + 2 * section.num_layers
        self.memory_size, self.num_heads = section.memory_size, section.num_heads
        width = section.hidden_size
        self.project = nn.Identity() if input_size == width else nn.Linear(input_size, width)
        self.layers = nn.ModuleList(Layer(section, dropout=dropout) for _ in range(section.num_layers))
        self.norm = Norm(width)

    def zero_state(self, num_lanes: int) -> State:
        """No memory: zeros for `memory_CLH`, of which none is filled."""
        some, num_rows = self.norm.bias_H, len(self.layers) * self.memory_size
        return some.new_zeros(num_rows, num_lanes, self.output_size), some.new_zeros(1, num_lanes, 1)

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window, as every `Recurrence`."""
        memory_CLH, filled_1L1 = state
        bias_LATR = attention_bias(
            len(input_TLE), filled_1L1[0, :, 0], memory_size=self.memory_size, num_heads=self.num_heads
        )
        hidden_TLH = _dropped(self.project(input_TLE), keys_SL, site=0, p=self.share)
        kept = []
        for k, (layer, memory_MLH) in enumerate(zip(self.layers, memory_CLH.chunk(len(self.layers)), strict=True)):
            read_RLH = torch.cat([memory_MLH, hidden_TLH])
            kept.append(last_steps(read_RLH, self.memory_size, short_L=short_L))
            hidden_TLH = layer(read_RLH, bias_LATR, keys_SL, site=1 + 2 * k)
        filled_1L1 = filled_1L1 + len(input_TLE)
        if short_L is not None:
            filled_1L1 = filled_1L1 - short_L[None, :, None].to(filled_1L1.dtype)
        return self.norm(hidden_TLH), (torch.cat(kept), filled_1L1.clamp(max=self.memory_size))


class Layer(nn.Module):
    """Attention, then a feed-forward network; each reads what is normalized and is added to what it read."""

    def __init__(self, section: TransformerConfig, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        width, self.num_heads = section.hidden_size, section.num_heads
        self.attention_norm, self.feed_norm = Norm(width), Norm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attended = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, section.feed_forward_size), nn.GELU(), nn.Linear(section.feed_forward_size, width)
        )

    def forward(self, read_RLH: Tensor, bias_LATR: Tensor, keys_SL: Tensor | None, *, site: int) -> Tensor:
        """The hidden vectors of the window, the last tokens that are read; drops by two rows of keys from `site` on."""
        hidden_TLH = read_RLH[-bias_LATR.shape[2] :]
        attended_TLH = self._attend(read_RLH, bias_LATR)
        hidden_TLH = hidden_TLH + _dropped(attended_TLH, keys_SL, site=site, p=self.dropout)
        fed_TLH = self.feed_forward(self.feed_norm(hidden_TLH))
        return hidden_TLH + _dropped(fed_TLH, keys_SL, site=site + 1, p=self.dropout)

    def _attend(self, read_RLH: Tensor, bias_LATR: Tensor) -> Tensor:
        normed_RLH = self.attention_norm(read_RLH)
        query_TLH = self.query(normed_RLH[-bias_LATR.shape[2] :])
        query_LATD, key_LARD, value_LARD = (
            each.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
            for each in (query_TLH, *self.key_value(normed_RLH).chunk(2, dim=-1))
        )
        found_LATD = F.scaled_dot_product_attention(query_LATD, key_LARD, value_LARD, attn_mask=bias_LATR)
        attended_TLH: Tensor = self.attended(found_LATD.permute(2, 0, 1, 3).flatten(2))
        return attended_TLH


class Norm(nn.Module):
    """Layer normalization whose gain is 1 + a parameter: parameters are drawn around 0, and gains begin around 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain_H = nn.Parameter(torch.empty(width))
        self.bias_H = nn.Parameter(torch.empty(width))

    def forward(self, hidden_TLH: Tensor) -> Tensor:
        """Each token's vector, normalized."""
        return F.layer_norm(hidden_TLH, self.gain_H.shape, 1 + self.gain_H, self.bias_H)


def attention_bias(num_steps: int, filled_L: Tensor, *, memory_size: int, num_heads: int) -> Tensor:
    """What is added to the attention's logits.

    Args:
        num_steps: T, of the window.
        filled_L: how many tokens of each lane's memory there are; the last ones of it.
        memory_size: M, of the memory, which stands before the window.
        num_heads: A; head a of 1 … A loses 2^(-8a / A) for each token of distance (ALiBi, section 3).

    Returns:
        bias_LATR, in the type of `filled_L`; -inf where a query does not see: ahead, further back than the memory's
        size, and where the memory is not filled.
    """
    place_R = torch.arange(memory_size + num_steps, device=filled_L.device)
    distance_TR = place_R[memory_size:, None] - place_R
    seen_TR = (distance_TR >= 0) & (distance_TR <= memory_size)
    there_LR = place_R >= memory_size - filled_L[:, None]
    slope_A = 2.0 ** (-8.0 / num_heads * torch.arange(1, num_heads + 1, device=filled_L.device, dtype=filled_L.dtype))
    bias_ATR = -slope_A[:, None, None] * distance_TR
    return bias_ATR.masked_fill(~(seen_TR & there_LR[:, None])[:, None], -torch.inf)


def _dropped(hidden_TLH: Tensor, keys_SL: Tensor | None, *, site: int, p: float) -> Tensor:
    return hidden_TLH if keys_SL is None else lane_dropout(hidden_TLH, keys_SL[site], p=p)
