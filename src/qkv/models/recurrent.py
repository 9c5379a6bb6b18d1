"""The recurrent encoder-decoder, without attention or with the attentions that preceded the Transformer.

It calls the same `attend`, so the lens observes the same tensors in it:

                 query                           key              value           scores
    additive     W (state before the step)       U (memory)       memory          v . tanh(query + key)
    dot          state after the step            memory           memory          query . key
    general      state after the step            W (memory)       memory          query . key

Additive attention (Bahdanau et al. 2015) attends *before* each step, and its context is an input of the step, so that
the decoder has to run position by position. Dot and general attention (Luong et al. 2015, without input feeding)
attend *after* it, so that training runs over all positions at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from qkv import spec
from qkv.attention import attend
from qkv.cache import Memory
from qkv.errors import DataError
from qkv.layers import Dropout
from qkv.models.protocol import SequenceModel
from qkv.outputs import VocabularyHead
from qkv.tap import NO_TAP, Tap

Hidden = tuple[Tensor, ...]
"""The states of one layer, each (batch, d_model): the hidden state and, in an LSTM, the cell."""

_LAYERS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
_CELLS: dict[str, type[nn.GRUCell] | type[nn.LSTMCell]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


@dataclass
class RecurrentState:
    """The state of the decoder after `length` tokens: that of each layer, and the memory that it attends to.

    origin (rows,): the row of the first batch that each row came from; rows of one origin share their memory.
    key (rows, 1, sources, d_model): the memory as the attention's keys, computed once; None without attention.
    """

    origin: Tensor
    memory: Memory
    key: Tensor | None
    hidden: tuple[Hidden, ...]
    length: int = 0

    def reorder(self, index: Tensor) -> RecurrentState:
        """Select or repeat rows; the number of rows may change. The old state must not be used again."""
        origin, memory, key = self.origin[index], self.memory, self.key
        if not torch.equal(origin, self.origin):  # a beam that is reordered within its sentence keeps its memory
            memory, key = memory.select(index), None if key is None else key[index]
        hidden = tuple(tuple(part[index] for part in layer) for layer in self.hidden)
        return RecurrentState(origin, memory, key, hidden, self.length)


class Embedding(nn.Module):
    """An embedding of tokens without positions, which recurrence makes unnecessary."""

    def __init__(self, config: spec.Tokens, d_model: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab, d_model)
        self.scale = d_model**0.5 if config.scale else 1.0
        self.dropout = Dropout()

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens (batch, length) int64 -> (batch, length, d_model)."""
        embedded: Tensor = self.dropout(self.tokens(tokens) * self.scale)
        return embedded


class Encoder(nn.Module):
    """An encoder that reads the source forwards and, if bidirectional, backwards, with half of d_model for each
    direction.

    Bahdanau et al. 2015, section 3.2.
    """

    def __init__(self, config: spec.Recurrent) -> None:
        super().__init__()
        d_model = config.d_model
        self.embedding = Embedding(config.source, d_model)
        both = config.bidirectional
        self.layers = nn.ModuleList(
            _LAYERS[config.cell](d_model, d_model // (1 + both), batch_first=True, bidirectional=both)
            for _ in range(config.layers)
        )
        self.dropouts = nn.ModuleList(Dropout() for _ in range(config.layers))

    def forward(self, source: Tensor, mask: Tensor | None = None, tap: Tap = NO_TAP) -> Tensor:
        """Encode source (batch, sources) int64 -> (batch, sources, d_model), 0 at padding. mask: the
        same shape, bool."""
        hidden = tap("embedding", self.embedding(source))
        lengths = _count_tokens(mask)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            if lengths is None:
                hidden = layer(hidden)[0]
            else:  # packed, so that the backward direction starts at each row's own last token
                packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
                hidden, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=source.shape[1])
            hidden = dropout(hidden)
        return hidden


def _count_tokens(mask: Tensor | None) -> Tensor | None:
    """Return the number of tokens in each row, on the CPU; None if there is no padding."""
    if mask is None or bool(mask.all()):
        return None
    if not bool((mask[:, 0] & (mask[:, :-1] >= mask[:, 1:]).all(dim=1)).all()):
        raise DataError(
            "the source mask of a row does not start with True or turns True again after a False; "
            "a recurrent model needs at least one token in every row, and padding after the tokens: pad on the right"
        )
    return mask.sum(dim=1).cpu()


class CrossAttention(nn.Module):
    """Attention to the memory: one head, whose values are the memory itself."""

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model) if kind == "additive" else None
        self.key = None if kind == "dot" else nn.Linear(d_model, d_model, bias=False)
        self.vector = nn.Parameter(torch.empty(d_model)) if kind == "additive" else None

    def compute_keys(self, memory: Memory) -> Tensor:
        """Compute the keys of the memory, (batch, 1, sources, d_model)."""
        return (memory.states if self.key is None else self.key(memory.states)).unsqueeze(1)

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute v . tanh(query + key) for each query and key (Bahdanau et al. 2015, appendix A.1.2)."""
        assert self.vector is not None
        return torch.tanh(query.unsqueeze(3) + key.unsqueeze(2)) @ self.vector

    def forward(self, query: Tensor, key: Tensor, memory: Memory, tap: Tap = NO_TAP) -> Tensor:
        """Attend from query (batch, queries, d_model) to keys from `compute_keys` -> context (batch,
        queries, d_model)."""
        context = attend(
            query.unsqueeze(1),
            key,
            memory.states.unsqueeze(1),
            mask=None if memory.mask is None else memory.mask[:, None, None, :],
            scale=1.0,
            score=None if self.vector is None else self.score,
            tap=tap,
        )
        return context.squeeze(1)


class Decoder(nn.Module):
    """A decoder that starts from the encoder's last state and attends to its memory.

    With additive attention, the first layer makes the query and receives the context, as in Bahdanau et al. 2015; the
    layers above it, if any, then run over all positions at once (as in Wu et al. 2016, section 3).
    """

    def __init__(self, config: spec.Recurrent) -> None:
        super().__init__()
        d_model = config.d_model
        self.embedding = Embedding(config.target, d_model)
        self.parts = 2 if config.cell == "lstm" else 1
        self.bidirectional = config.bidirectional
        self.bridge = nn.Linear(d_model, config.layers * self.parts * d_model) if config.bridged else None
        self.cross_attention = CrossAttention(config.attention, d_model) if config.attention else None
        additive = config.attention == "additive"
        # The input of the cell is the embedding concatenated with the context.
        self.cell = _CELLS[config.cell](2 * d_model, d_model) if additive else None
        self.layers = nn.ModuleList(
            _LAYERS[config.cell](d_model, d_model, batch_first=True) for _ in range(config.layers - additive)
        )
        self.dropouts = nn.ModuleList(Dropout() for _ in range(config.layers))
        inputs = {None: 0, "additive": 3, "dot": 2, "general": 2}[config.attention]
        self.readout = nn.Linear(inputs * d_model, d_model) if inputs else None
        self.readout_dropout = Dropout()

    def start(self, memory: Memory) -> tuple[Hidden, ...]:
        """Return the states of the layers before the first token, from the last state of each direction of the encoder.

        state = tanh(W end + b), as in Bahdanau et al. 2015, appendix A.2.2; an LSTM's cell starts without the tanh.
        Without a bridge, state = end.
        """
        forwards, backwards = memory.states.chunk(2, dim=-1) if self.bidirectional else (memory.states, None)
        if memory.mask is None:
            last = forwards[:, -1]
        else:
            rows = torch.arange(forwards.shape[0], device=forwards.device)
            last = forwards[rows, memory.mask.sum(dim=1) - 1]
        end = last if backwards is None else torch.cat([last, backwards[:, 0]], dim=-1)
        if self.bridge is None:
            return ((end,),)
        bridged: Tensor = self.bridge(end)
        vectors = bridged.chunk(len(self.dropouts) * self.parts, dim=-1)
        if self.parts == 1:
            return tuple((state.tanh(),) for state in vectors)
        return tuple((state.tanh(), cell) for state, cell in zip(vectors[::2], vectors[1::2], strict=True))

    def forward(self, tokens: Tensor, state: RecurrentState, tap: Tap = NO_TAP) -> tuple[Tensor, RecurrentState]:
        """Decode tokens (batch, n) -> the input of the head, (batch, n, d_model), and the new state."""
        embedded = tap("embedding", self.embedding(tokens))
        hidden, after, context = embedded, [], None
        look = tap.at("cross_attention")
        dropouts = iter(self.dropouts)
        if self.cell is not None:
            hidden, context, remembered = self._run_additive(embedded, state, look)
            after.append(remembered)
            hidden = next(dropouts)(hidden)
        for layer, dropout, before in zip(self.layers, dropouts, state.hidden[len(after) :], strict=True):
            hidden, remembered = _run_layer(layer, hidden, before)
            after.append(remembered)
            hidden = dropout(hidden)
        if self.cross_attention is not None and self.cell is None:
            assert state.key is not None
            context = self.cross_attention(hidden, state.key, state.memory, look)
        if self.readout is not None:
            assert context is not None
            read = [context, hidden] if self.cell is None else [context, hidden, embedded]
            hidden = self.readout_dropout(torch.tanh(self.readout(torch.cat(read, dim=-1))))
        state = RecurrentState(state.origin, state.memory, state.key, tuple(after), state.length + tokens.shape[1])
        return hidden, state

    def _run_additive(self, embedded: Tensor, state: RecurrentState, tap: Tap) -> tuple[Tensor, Tensor, Hidden]:
        """Attend, then step, position by position; return states and contexts (batch, n, d_model), and the last states.

        Everything that does not depend on the previous step is computed for all positions at once, and the two products
        with
        the previous state (its share in the gates, and its query) as one.
        """
        cell, attention, key = self.cell, self.cross_attention, state.key
        assert cell is not None and attention is not None and attention.query is not None and key is not None
        gates = cell.weight_hh.shape[0]
        by_embedding, by_context = cell.weight_ih.chunk(2, dim=1)
        inputs = functional.linear(embedded, by_embedding, cell.bias_ih).unbind(dim=1)
        by_state = torch.cat([cell.weight_hh, attention.query.weight])
        bias = torch.cat([cell.bias_hh, attention.query.bias])
        step: Callable[..., Hidden] = _step_gru if self.parts == 1 else _step_lstm
        remembered = state.hidden[0]
        states, contexts = [], []
        for given in inputs:
            both = functional.linear(remembered[0], by_state, bias)
            context = attention(both[:, None, gates:], key, state.memory, tap).squeeze(1)
            remembered = step(given + functional.linear(context, by_context), both[:, :gates], *remembered)
            states.append(remembered[0])
            contexts.append(context)
        return torch.stack(states, dim=1), torch.stack(contexts, dim=1), remembered


def _step_gru(inputs: Tensor, recurrent: Tensor, state: Tensor) -> Hidden:
    """Compute one step of a gated recurrent unit, gates in torch's order: reset, update, new (Cho et al. 2014)."""
    d_model = state.shape[-1]
    reset, update = torch.sigmoid(inputs[:, : 2 * d_model] + recurrent[:, : 2 * d_model]).chunk(2, dim=-1)
    new = torch.tanh(torch.addcmul(inputs[:, 2 * d_model :], reset, recurrent[:, 2 * d_model :]))
    return (torch.lerp(new, state, update),)


def _step_lstm(inputs: Tensor, recurrent: Tensor, state: Tensor, cell: Tensor) -> Hidden:
    """Compute one step of a long short-term memory, gates in torch's order: input, forget, new, output (Gers 2000)."""
    enter, forget, new, leave = (inputs + recurrent).chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def _run_layer(layer: nn.Module, inputs: Tensor, before: Hidden) -> tuple[Tensor, Hidden]:
    """Run a whole layer over (batch, n, d_model) from its previous states, on torch's fused path."""
    first = tuple(part.unsqueeze(0).contiguous() for part in before)
    hidden, last = layer(inputs, first if len(first) > 1 else first[0])
    last = last if isinstance(last, tuple) else (last,)
    return hidden, tuple(part.squeeze(0) for part in last)


class Recurrent(SequenceModel):
    """The model of a `spec.Recurrent`."""

    def __init__(self, config: spec.Recurrent) -> None:
        super().__init__()
        self.spec = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.head = VocabularyHead(config.head, config.d_model, self.decoder.embedding.tokens)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw new parameters from torch's generator.

        Gates: Xavier-uniform from the input, orthogonal from the state (as in Bahdanau et al. 2015, appendix B.1), gate
        by
        gate; biases 0 but an LSTM's forget gate, 1, so that it remembers at first (Gers 2000). Linear layers: Xavier-
        uniform
        with zero bias. Embeddings, the output matrix and the additive score's v: normal with
        standard deviation 1 / sqrt(d_model).
        """
        deviation = self.head.weight.shape[1] ** -0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
                _init_gates(module)
            elif isinstance(module, CrossAttention) and module.vector is not None:
                nn.init.normal_(module.vector, std=deviation)
        nn.init.normal_(self.head.weight, std=deviation)

    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Memory:
        if source.shape[1] == 0:
            raise DataError(
                "a source of length 0 was given; a recurrent encoder needs at least one token: end it with </s>"
            )
        with _disable_autocast():
            states = self.encoder(source, source_mask, tap.at("encoder"))
        return Memory(tap("memory", states), source_mask)

    def start(self, memory: Memory | None, rows: int) -> RecurrentState:
        if memory is None:
            raise DataError(
                "no memory was given; a recurrent encoder-decoder starts from one: call encode(source) first"
            )
        origin = torch.arange(memory.states.shape[0], device=memory.states.device)
        attention = self.decoder.cross_attention
        with _disable_autocast():
            key = None if attention is None else attention.compute_keys(memory)
            return RecurrentState(origin, memory, key, self.decoder.start(memory))

    @torch.no_grad()
    def step(  # type: ignore[override]  # a model takes its own kind of state
        self, tokens: Tensor, state: RecurrentState, tap: Tap = NO_TAP
    ) -> tuple[Tensor, RecurrentState]:
        return self._decode(tokens, state, tap)

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """Return all logits, see `SequenceModel`. Target padding follows the last token, where it cannot affect earlier
        ones.
        """
        if source is None or target is None:
            given = "no source" if source is None else "no target"
            raise DataError(f"{given} was given; a recurrent encoder-decoder needs both: pass source= and target=")
        memory = self.encode(source, source_mask, tap)
        return self._decode(target, self.start(memory, source.shape[0]), tap)[0]

    def _decode(self, tokens: Tensor, state: RecurrentState, tap: Tap) -> tuple[Tensor, RecurrentState]:
        with _disable_autocast():
            hidden, after = self.decoder(tokens, state, tap.at("decoder"))
        return tap("logits", self.head(hidden)), after


def _disable_autocast() -> torch.autocast:
    """Run recurrence in the precision of its parameters on a CPU.

    torch has no bfloat16 LSTM for CPUs without bfloat16 instructions, and the small products of a step measured ten
    times
    slower there.
    """
    return torch.autocast("cpu", enabled=False)


def _init_gates(module: nn.RNNBase | nn.RNNCellBase) -> None:
    width = module.hidden_size
    for name, parameter in module.named_parameters():
        if name.startswith("weight"):
            for gate in parameter.data.chunk(parameter.shape[0] // width):
                (nn.init.xavier_uniform_ if "ih" in name else nn.init.orthogonal_)(gate)
        else:
            nn.init.zeros_(parameter)
            if isinstance(module, nn.LSTM | nn.LSTMCell) and "ih" in name:
                parameter.data[width : 2 * width] = 1.0
