"""The Transformer (Vaswani et al. 2017): encoder-decoder, decoder only or encoder only, as its spec says."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.cache import BlockCache, KeyValueCache, Memory, SSRUCache, TransformerState
from qkv.errors import SpecError
from qkv.inputs import InputEmbedding, PatchEmbedding, TokenEmbedding, build_embedding
from qkv.layers import AttentionInputs, Block, build_norm
from qkv.mask import MAX_MASK_ELEMENTS, Mask
from qkv.models.protocol import SequenceModel
from qkv.outputs import (
    ActionsHead,
    ClassesHead,
    LabelsHead,
    PointerGeneratorHead,
    StatesHead,
    VectorHead,
    VocabularyHead,
)
from qkv.positions import RelativeBias, compute_alibi_bias, compute_distances, compute_rotations
from qkv.tap import NO_TAP, Tap


class Stack(nn.Module):
    """An embedding and blocks; it computes masks and positions once for all blocks."""

    def __init__(self, config: spec.Stack, d_memory: int | None) -> None:
        super().__init__()
        self.config = config
        self.embedding = build_embedding(config)
        self.depth = config.repeats * len(config.blocks)
        self.blocks = nn.ModuleList(Block(block, config.d_model, d_memory) for block in config.blocks)
        self.final_norm = build_norm(config.final_norm, config.d_model) if config.final_norm else nn.Identity()
        shared = {
            block.self_attention.position: block.self_attention
            for block in config.blocks
            if isinstance(block.self_attention, spec.Attention)
            and isinstance(block.self_attention.position, spec.RelativeBias)
        }
        self._bias_index = {position: number for number, position in enumerate(shared)}
        self.position_biases = nn.ModuleList(
            RelativeBias(position, attention.heads, bidirectional=not attention.causal)
            for position, attention in shared.items()
            if isinstance(position, spec.RelativeBias)
        )

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        caches: list[BlockCache] | None = None,
        past: int = 0,
        tap: Tap = NO_TAP,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states of the last block, (batch, length, d_model).

        inputs: what the embedding reads, such as tokens (batch, length) int64 or vectors (batch, length, d_model).
        mask: (batch, length) bool, False for padding; or (batch, queries, keys) bool, True where a query may attend,
            which replaces the model's own causal rule and window, as a prefix language model needs it.
        past: the number of cached positions. documents: (batch, length) int64, the document that a position belongs to;
        it
            attends to no other.
        """
        allowed = mask if mask is not None and mask.dim() == 3 else None
        hidden = tap("embedding", self.embedding(inputs, past, None if allowed is not None else mask))
        mask = self.position_mask(mask)
        placings: dict[tuple[object, ...], AttentionInputs] = {}
        memory_mask = None if memory is None or memory.mask is None else memory.mask[:, None, None, :]
        memory_placing = AttentionInputs(mask=memory_mask)
        for number in range(self.depth):
            block = self.blocks[number % len(self.blocks)]
            attention = self.config.blocks[number % len(self.blocks)].self_attention
            if isinstance(attention, spec.SSRU):
                if documents is not None:
                    raise SpecError("an SSRU was given several documents in a row, which it cannot separate")
                if allowed is not None:
                    raise SpecError("an SSRU was given a mask of queries by keys; expected (batch, length) bool")
                placing = AttentionInputs(mask)
            else:
                key = (attention.position, attention.causal, attention.window, attention.heads, attention.d_key)
                if key not in placings:
                    rule = Mask(attention.causal, attention.window, past, key_mask=mask)
                    if allowed is not None:
                        rule = Mask(past=past) & allowed[:, None]
                    if documents is not None:
                        rule = replace(rule, documents=(documents, documents))
                    placings[key] = self._build_attention_inputs(attention, hidden, rule, past)
                placing = placings[key]
            hidden = block(
                hidden,
                placing,
                None if memory is None else memory.states,
                memory_placing,
                caches[number] if caches else None,
                tap.at(str(number)),
            )
        result: Tensor = self.final_norm(hidden)
        return result

    def position_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return which positions are real, (batch, length) bool; None for all, and with a mask of queries by keys."""
        return self.embedding.position_mask(None if mask is None or mask.dim() == 3 else mask)

    def build_caches(self) -> list[BlockCache]:
        """Return empty caches for decoding: one for each block, and for each time it is repeated."""
        blocks = self.config.blocks * self.config.repeats
        return [
            BlockCache(SSRUCache() if isinstance(block.self_attention, spec.SSRU) else KeyValueCache())
            for block in blocks
        ]

    def _build_attention_inputs(
        self, attention: spec.Attention, hidden: Tensor, rule: Mask, past: int
    ) -> AttentionInputs:
        length, device = hidden.shape[1], hidden.device
        position = attention.position
        large = hidden.shape[0] * length * (past + length) > MAX_MASK_ELEMENTS
        # A long text processed in chunks; a trace keeps all of them. In an exported graph `past` is not a number.
        reading = isinstance(past, int) and past > 0 and length > 1 and rule.key_mask is None
        # The kernel's own causal flag costs nothing, and a rule that is too large is applied by rows; any other becomes
        # one matrix, which all blocks with this rule share.
        stays = rule.is_only_causal or ((large or reading) and isinstance(position, spec.Rotary | None))
        visible = rule if stays else rule.to_tensor(length, past + length, device)
        if isinstance(position, spec.Rotary):
            places = torch.arange(past, past + length, device=device)
            return AttentionInputs(visible, rotations=compute_rotations(places, attention.d_key, position))
        if isinstance(position, spec.RelativeBias):
            table = self.position_biases[self._bias_index[position]]
            return AttentionInputs(visible, bias=table(compute_distances(length, past + length, past, device)))
        if isinstance(position, spec.Alibi):
            return AttentionInputs(
                visible,
                bias=compute_alibi_bias(
                    compute_distances(length, past + length, past, device), attention.heads, position.factor
                ),
            )
        return AttentionInputs(visible)


def _get_token_embedding(stack: Stack) -> nn.Embedding:
    """Return the token embedding of a stack. Raises SpecError if it reads something else."""
    if not isinstance(stack.embedding, TokenEmbedding):
        raise SpecError("head=Vocabulary or shared_embedding was given; the stack must then read Tokens")
    return stack.embedding.tokens


class Transformer(SequenceModel):
    """The model of a `spec.Transformer`."""

    def __init__(self, config: spec.Transformer) -> None:
        super().__init__()
        self.spec = config
        self.encoder = Stack(config.encoder, None) if config.encoder else None
        self.decoder = (
            Stack(config.decoder, config.encoder.d_model if config.encoder else None) if config.decoder else None
        )
        if config.shared_embedding:
            assert self.encoder is not None and self.decoder is not None
            _get_token_embedding(self.decoder).weight = _get_token_embedding(self.encoder).weight
        last = self.decoder or self.encoder
        assert last is not None
        d_model = last.config.d_model
        self.head: (
            VocabularyHead | PointerGeneratorHead | LabelsHead | ClassesHead | VectorHead | ActionsHead | StatesHead
        )
        match config.head:
            case spec.Vocabulary():
                self.head = VocabularyHead(config.head, d_model, _get_token_embedding(last))
            case spec.PointerGenerator():
                assert config.encoder is not None
                self.head = PointerGeneratorHead(
                    config.head, d_model, config.encoder.d_model, _get_token_embedding(last)
                )
            case spec.Labels():
                self.head = LabelsHead(config.head, d_model)
            case spec.Classes():
                self.head = ClassesHead(config.head, d_model, last.embedding.num_prefix_tokens)
            case spec.Vector():
                self.head = VectorHead(config.head, d_model, last.embedding.num_prefix_tokens)
            case spec.Actions():
                assert isinstance(last.config.input, spec.Trajectory)
                self.head = ActionsHead(config.head, d_model, last.config.input)
            case spec.States():
                self.head = StatesHead(config.head, d_model)
        self.encoder_head: LabelsHead | None = None
        if config.encoder_head is not None:
            assert config.encoder is not None
            self.encoder_head = LabelsHead(config.encoder_head, config.encoder.d_model)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw new parameters from torch's generator.

        Linear layers: Xavier-uniform with zero bias, as in the 2017 code; those that write into the residual of a pre-
        norm
        block are scaled by 1 / sqrt(2 * blocks) (Radford et al. 2019). Embeddings: normal with
        standard deviation 1 / sqrt(d_model) where they are scaled or tied to the output, else 1; untied output vectors,
        half of
        the former. Learned vectors of inputs other than tokens: 0.02, and classifiers 0 (Dosovitskiy et al. 2021, in
        its authors' code).
        """
        answer = self.head.vocabulary if isinstance(self.head, PointerGeneratorHead) else self.head
        vocabulary = answer if isinstance(answer, VocabularyHead) else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, TokenEmbedding):
                answers = vocabulary is not None and vocabulary.weight is module.tokens.weight
                alone = module.scale == 1.0 and not answers
                for table in filter(None, (module.tokens, module.positions, module.segments)):
                    nn.init.normal_(table.weight, std=1.0 if alone else table.embedding_dim**-0.5)
            elif isinstance(module, InputEmbedding):
                extra_vectors = [*module.class_tokens, module.registers] if isinstance(module, PatchEmbedding) else []
                extra_vectors += [table.weight for table in module.children() if isinstance(table, nn.Embedding)]
                for vectors in extra_vectors:
                    if vectors is not None:
                        nn.init.normal_(vectors, std=0.02)
            elif isinstance(module, RelativeBias):
                nn.init.normal_(module.bias, std=0.02)
        if isinstance(self.head, ClassesHead):
            nn.init.zeros_(self.head.linear.weight)
        if vocabulary is not None and not vocabulary.tied:
            nn.init.normal_(vocabulary.weight, std=0.5 * vocabulary.weight.shape[1] ** -0.5)
        for stack in filter(None, (self.encoder, self.decoder)):
            for choice, block in zip(stack.config.blocks, stack.blocks, strict=True):
                if choice.norm_at == "pre":
                    for name, module in block.named_modules():
                        if name.endswith((".output", ".down_proj")) and isinstance(module, nn.Linear):
                            module.weight.data.mul_((2 * len(stack.blocks)) ** -0.5)

    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Memory | None:
        if self.encoder is None or self.decoder is None:
            return None
        states = tap("memory", self.encoder(source, source_mask, tap=tap.at("encoder")))
        mask = self.encoder.position_mask(source_mask)
        if isinstance(self.head, PointerGeneratorHead):
            return Memory(states, mask, source, self.head.compute_keys(states))
        return Memory(states, mask)

    def compute_encoder_logits(self, memory: Memory) -> Tensor:
        """Compute the encoder's own logits (batch, sources, labels). Raises SpecError if it has no head."""
        if self.encoder_head is None:
            raise SpecError("this model's encoder has no head; expected a spec with encoder_head")
        logits: Tensor = self.encoder_head(memory.states)
        return logits

    def decode(
        self,
        target: Tensor,
        memory: Memory | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
        documents: Tensor | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of `forward` for a memory from `encode`.

        where: (batch, targets) bool, for a decoder-only model: return only the logits of the positions that are True,
        (positions, vocab), since a large vocabulary costs as much as many blocks.
        """
        assert self.decoder is not None
        # Padding follows the last token, where a causal decoder cannot attend to it, so it needs no mask
        # unless the caller gives one.
        hidden = self.decoder(target, target_mask, memory, tap=tap.at("decoder"), documents=documents)
        if selected is not None:
            hidden = hidden[selected]
        return tap("logits", self._compute_logits(hidden, memory, tap))

    def start(self, memory: Memory | None, rows: int) -> TransformerState:
        if self.decoder is None:
            raise SpecError("this model has only an encoder and predicts no sequence; call it with source= instead")
        device = next(self.parameters()).device
        rows = rows if memory is None else memory.states.shape[0]
        return TransformerState(torch.arange(rows, device=device), memory, self.decoder.build_caches())

    @torch.no_grad()
    def step(  # type: ignore[override]  # a model takes its own kind of state
        self, tokens: Tensor, state: TransformerState, tap: Tap = NO_TAP
    ) -> tuple[Tensor, TransformerState]:
        assert self.decoder is not None
        hidden = self.decoder(tokens, None, state.memory, state.blocks, past=state.length, tap=tap.at("decoder"))
        after = TransformerState(state.origin, state.memory, state.blocks, state.length + tokens.shape[1])
        return tap("logits", self._compute_logits(hidden, state.memory, tap)), after

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return all logits, see `SequenceModel`.

        documents (batch, targets) int64: the document of its row that a target token belongs to.
        """
        if self.decoder is None:
            assert self.encoder is not None and source is not None
            hidden = self.encoder(source, source_mask, tap=tap.at("encoder"))
            if isinstance(self.head, ClassesHead | VectorHead):
                return tap(
                    "logits",
                    self.head(hidden, self.encoder.position_mask(source_mask)),
                )
            return tap("logits", self.head(hidden))
        assert target is not None
        memory = None if source is None else self.encode(source, source_mask, tap)
        return self.decode(target, memory, target_mask, tap, documents)

    def _compute_logits(self, hidden: Tensor, memory: Memory | None, tap: Tap) -> Tensor:
        if not isinstance(self.head, PointerGeneratorHead):
            answered: Tensor = self.head(hidden)
            return answered
        assert memory is not None
        copied: Tensor = self.head(hidden, memory, tap.at("head"))
        return copied
