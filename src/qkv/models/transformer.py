"""The Transformer (Vaswani et al. 2017): encoder-decoder, decoder alone or encoder alone, as its spec says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.cache import BlockCache, Carried, KeyValues, Memory, TransformerState
from qkv.errors import SpecError
from qkv.inputs import PatchReader, Reader, TokenReader, reader
from qkv.layers import Block, Placing, norm
from qkv.mask import LARGEST, Mask
from qkv.models.protocol import SequenceModel
from qkv.outputs import (
    ActionsAnswer,
    ClassesAnswer,
    LabelsAnswer,
    PointerGeneratorAnswer,
    StatesAnswer,
    VectorAnswer,
    VocabularyAnswer,
)
from qkv.positions import RelativeBias, alibi, distances, rotations
from qkv.tap import NO_TAP, Tap


class Stack(nn.Module):
    """Embedding and blocks; works out once for all blocks what they may see and where everything stands."""

    def __init__(self, choice: spec.Stack, d_memory: int | None) -> None:
        super().__init__()
        self.choice = choice
        self.embedding = reader(choice)
        self.depth = choice.repeats * len(choice.blocks)
        self.blocks = nn.ModuleList(Block(block, choice.d_model, d_memory) for block in choice.blocks)
        self.final_norm = norm(choice.final_norm, choice.d_model) if choice.final_norm else nn.Identity()
        shared = {
            block.self_attention.position: block.self_attention
            for block in choice.blocks
            if isinstance(block.self_attention, spec.Attention)
            and isinstance(block.self_attention.position, spec.RelativeBias)
        }
        self._biased = {position: number for number, position in enumerate(shared)}
        self.position_biases = nn.ModuleList(
            RelativeBias(position, attention.heads, both_ways=not attention.causal)
            for position, attention in shared.items()
            if isinstance(position, spec.RelativeBias)
        )

    def forward(
        self,
        given: Tensor,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        caches: list[BlockCache] | None = None,
        past: int = 0,
        tap: Tap = NO_TAP,
        documents: Tensor | None = None,
    ) -> Tensor:
        """What its reader takes, such as tokens (batch, length), and which of it is real, (batch, length) bool ->
        (batch, length, d_model); `past` positions are cached. documents (batch, length) int64: which text of its row
        a position belongs to; it sees no other."""
        hidden = tap("embedding", self.embedding(given, past, mask))
        mask = self.embedding.mask(mask)
        placings: dict[tuple[object, ...], Placing] = {}
        seen = None if memory is None or memory.mask is None else memory.mask[:, None, None, :]
        memory_placing = Placing(mask=seen)
        for number in range(self.depth):
            block = self.blocks[number % len(self.blocks)]
            attention = self.choice.blocks[number % len(self.blocks)].self_attention
            if isinstance(attention, spec.Recurrence):
                if documents is not None:
                    raise SpecError("a Recurrence was given several texts in a row, which it cannot keep apart")
                placing = Placing(mask)
            else:
                key = (attention.position, attention.causal, attention.window, attention.heads, attention.d_key)
                if key not in placings:
                    placings[key] = self._place(attention, hidden, mask, past, documents)
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

    def caches(self) -> list[BlockCache]:
        """What its blocks keep between steps, before the first: one a block, and one for each time it is repeated."""
        blocks = self.choice.blocks * self.choice.repeats
        return [
            BlockCache(Carried() if isinstance(block.self_attention, spec.Recurrence) else KeyValues())
            for block in blocks
        ]

    def _place(
        self, attention: spec.Attention, hidden: Tensor, mask: Tensor | None, past: int, documents: Tensor | None
    ) -> Placing:
        length, device = hidden.shape[1], hidden.device
        texts = None if documents is None else (documents, documents)
        rule = Mask(attention.causal, attention.window, past, keys=mask, documents=texts)
        position = attention.position
        large = hidden.shape[0] * length * (past + length) > LARGEST
        # A long text some tokens at a time: a trace keeps them all. In a graph that is made `past` is no number yet.
        reading = isinstance(past, int) and past > 0 and length > 1 and mask is None
        # The kernel's own causal flag costs nothing, and a rule that is too large is taken by rows; any other becomes
        # one matrix for all blocks that share it.
        stays = rule.only_causal or ((large or reading) and isinstance(position, spec.Rotary | None))
        seen = rule if stays else rule.matrix(length, past + length, device)
        if isinstance(position, spec.Rotary):
            places = torch.arange(past, past + length, device=device)
            return Placing(seen, rotations=rotations(places, attention.d_key, position))
        if isinstance(position, spec.RelativeBias):
            table = self.position_biases[self._biased[position]]
            return Placing(seen, bias=table(distances(length, past + length, past, device)))
        if isinstance(position, spec.Alibi):
            return Placing(
                seen, bias=alibi(distances(length, past + length, past, device), attention.heads, position.factor)
            )
        return Placing(seen)


def _tokens(stack: Stack) -> nn.Embedding:
    """The token vectors of a stack; SpecError if it reads something else."""
    if not isinstance(stack.embedding, TokenReader):
        raise SpecError("answers=Vocabulary or shared_embedding was given; the stack must then read Tokens")
    return stack.embedding.tokens


class Transformer(SequenceModel):
    """The model a `spec.Transformer` describes."""

    def __init__(self, choice: spec.Transformer) -> None:
        super().__init__()
        self.spec = choice
        self.encoder = Stack(choice.encoder, None) if choice.encoder else None
        self.decoder = (
            Stack(choice.decoder, choice.encoder.d_model if choice.encoder else None) if choice.decoder else None
        )
        if choice.shared_embedding:
            assert self.encoder is not None and self.decoder is not None
            _tokens(self.decoder).weight = _tokens(self.encoder).weight
        last = self.decoder or self.encoder
        assert last is not None
        d_model = last.choice.d_model
        self.answer: (
            VocabularyAnswer
            | PointerGeneratorAnswer
            | LabelsAnswer
            | ClassesAnswer
            | VectorAnswer
            | ActionsAnswer
            | StatesAnswer
        )
        match choice.answers:
            case spec.Vocabulary():
                self.answer = VocabularyAnswer(choice.answers, d_model, _tokens(last))
            case spec.PointerGenerator():
                assert choice.encoder is not None
                self.answer = PointerGeneratorAnswer(choice.answers, d_model, choice.encoder.d_model, _tokens(last))
            case spec.Labels():
                self.answer = LabelsAnswer(choice.answers, d_model)
            case spec.Classes():
                self.answer = ClassesAnswer(choice.answers, d_model, last.embedding.apart)
            case spec.Vector():
                self.answer = VectorAnswer(choice.answers, d_model, last.embedding.apart)
            case spec.Actions():
                assert isinstance(last.choice.reads, spec.Trajectory)
                self.answer = ActionsAnswer(choice.answers, d_model, last.choice.reads)
            case spec.States():
                self.answer = StatesAnswer(choice.answers, d_model)
        self.encoder_answer: LabelsAnswer | None = None
        if choice.encoder_answers is not None:
            assert choice.encoder is not None
            self.encoder_answer = LabelsAnswer(choice.encoder_answers, choice.encoder.d_model)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh parameters from torch's generator.

        Linear layers: Xavier-uniform with zero bias, as in the 2017 code; those that write into the residual of a
        pre-norm block are scaled by 1 / sqrt(2 * blocks) (Radford et al. 2019). Embeddings: normal with deviation
        1 / sqrt(d_model) where they are scaled or answer as well, else 1; vectors that only answer, half of the former;
        what is learned beside what is read that is no token, 0.02, and what scores classes 0 (Dosovitskiy et al. 2021,
        in its authors' code).
        """
        answer = self.answer.vocabulary if isinstance(self.answer, PointerGeneratorAnswer) else self.answer
        vocabulary = answer if isinstance(answer, VocabularyAnswer) else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, TokenReader):
                answers = vocabulary is not None and vocabulary.vectors is module.tokens.weight
                alone = module.scale == 1.0 and not answers
                for table in filter(None, (module.tokens, module.positions, module.segments)):
                    nn.init.normal_(table.weight, std=1.0 if alone else table.embedding_dim**-0.5)
            elif isinstance(module, Reader):
                beside = [*module.leading, module.registers] if isinstance(module, PatchReader) else []
                beside += [table.weight for table in module.children() if isinstance(table, nn.Embedding)]
                for vectors in beside:
                    if vectors is not None:
                        nn.init.normal_(vectors, std=0.02)
            elif isinstance(module, RelativeBias):
                nn.init.normal_(module.bias, std=0.02)
        if isinstance(self.answer, ClassesAnswer):
            nn.init.zeros_(self.answer.linear.weight)
        if vocabulary is not None and not vocabulary.tied:
            nn.init.normal_(vocabulary.vectors, std=0.5 * vocabulary.vectors.shape[1] ** -0.5)
        for stack in filter(None, (self.encoder, self.decoder)):
            for choice, block in zip(stack.choice.blocks, stack.blocks, strict=True):
                if choice.norm_at == "pre":
                    for name, module in block.named_modules():
                        if name.endswith((".output", ".narrow")) and isinstance(module, nn.Linear):
                            module.weight.data.mul_((2 * len(stack.blocks)) ** -0.5)

    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Memory | None:
        if self.encoder is None or self.decoder is None:
            return None
        states = tap("memory", self.encoder(source, source_mask, tap=tap.at("encoder")))
        mask = self.encoder.embedding.mask(source_mask)
        if isinstance(self.answer, PointerGeneratorAnswer):
            return Memory(states, mask, source, self.answer.keys(states))
        return Memory(states, mask)

    def label(self, memory: Memory) -> Tensor:
        """What the encoder answers by itself: logits (batch, sources, labels). Raises SpecError if it does not."""
        if self.encoder_answer is None:
            raise SpecError("this model's encoder answers nothing by itself; expected a spec with encoder_answers")
        logits: Tensor = self.encoder_answer(memory.states)
        return logits

    def answer_to(
        self,
        target: Tensor,
        memory: Memory | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
        documents: Tensor | None = None,
        where: Tensor | None = None,
    ) -> Tensor:
        """The logits of `forward`, of a source that `encode` has read; with `where` (batch, targets) bool of a decoder
        alone those of the places that are True, (places, vocab): a large vocabulary costs as much as many blocks."""
        assert self.decoder is not None
        # Padding stands after the last token, where a causal decoder cannot see it, so no mask is needed for it
        # unless somebody gives one.
        hidden = self.decoder(target, target_mask, memory, tap=tap.at("decoder"), documents=documents)
        if where is not None:
            hidden = hidden[where]
        return tap("logits", self._answered(hidden, memory, tap))

    def start(self, memory: Memory | None, rows: int) -> TransformerState:
        if self.decoder is None:
            raise SpecError("this model has an encoder alone and predicts no sequence; call it with source= instead")
        device = next(self.parameters()).device
        rows = rows if memory is None else memory.states.shape[0]
        return TransformerState(torch.arange(rows, device=device), memory, self.decoder.caches())

    @torch.no_grad()
    def step(  # type: ignore[override]  # a model takes its own kind of state
        self, tokens: Tensor, state: TransformerState, tap: Tap = NO_TAP
    ) -> tuple[Tensor, TransformerState]:
        assert self.decoder is not None
        hidden = self.decoder(tokens, None, state.memory, state.blocks, past=state.length, tap=tap.at("decoder"))
        after = TransformerState(state.origin, state.memory, state.blocks, state.length + tokens.shape[1])
        return tap("logits", self._answered(hidden, state.memory, tap)), after

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
        documents: Tensor | None = None,
    ) -> Tensor:
        """As the protocol says; documents (batch, targets) int64: which text of its row a target belongs to."""
        if self.decoder is None:
            assert self.encoder is not None and source is not None
            hidden = self.encoder(source, source_mask, tap=tap.at("encoder"))
            if isinstance(self.answer, ClassesAnswer | VectorAnswer):
                return tap("logits", self.answer(hidden, self.encoder.embedding.mask(source_mask)))
            return tap("logits", self.answer(hidden))
        assert target is not None
        memory = None if source is None else self.encode(source, source_mask, tap)
        return self.answer_to(target, memory, target_mask, tap, documents)

    def _answered(self, hidden: Tensor, memory: Memory | None, tap: Tap) -> Tensor:
        if not isinstance(self.answer, PointerGeneratorAnswer):
            answered: Tensor = self.answer(hidden)
            return answered
        assert memory is not None
        copied: Tensor = self.answer(hidden, memory, tap.at("answer"))
        return copied
