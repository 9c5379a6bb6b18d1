"""Learning to see: labelled images from any place, augmented, trained on, saved, opened, scored and looked into."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("PIL")

from PIL import Image

from qkv import config, inputs, spec, tasks
from qkv.cli import main
from qkv.data import corpora
from qkv.data.images import sources, store
from qkv.data.images.augmentation import ColorJitter, Cutout, RandomAffine, RandomCrop, RandomHorizontalFlip, mixup
from qkv.data.images.processing import ImageProcessor
from qkv.errors import CheckpointError, ConfigError, CorpusError, DataError, MissingExtraError, QkvError, SpecError
from qkv.models import build
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.image_classification.config import ImageClassificationConfig, ViT
from qkv.tasks.image_classification.training import load_data
from qkv.training.loss import cross_entropy, smoothed_and_plain_cross_entropy
from qkv.training.reporters import NullReporter

COUNT = 60
PLAIN = ImageProcessor(None, mean=(0.0,), std=(1.0,), grayscale=True)


def make_images() -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 x 8 pixels, bright above or below."""
    generator = np.random.default_rng(0)
    labels = np.arange(COUNT) % 2
    images = generator.integers(0, 60, (COUNT, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 150
    return images, labels.astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy images in every form."""
    place = tmp_path_factory.mktemp("images")
    images, labels = make_images()
    np.savez(place / "toy.npz", images=images, labels=labels, classes=np.array(["above", "below"]))
    for name, array in (("images", images), ("labels", labels)):
        sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
        (place / f"{name}.gz").write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = place / "classes" / ("above", "below")[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return place


def build_recipe(place: Path, **changes: object) -> ImageClassificationConfig:
    tree = {
        "task": "image-classification",
        "data": {
            "train": [{"kind": "npz", "path": str(place / "toy.npz")}],
            "held_out": 0.2,
            "grayscale": True,
            "batch_size": 16,
            "augmentation": [{"kind": "random_crop", "padding": 1}],
            "mixup": 0.2,
        },
        "model": {
            "kind": "vit",
            "patch_size": 4,
            "stem": [{"channels": 8, "kernel_size": 3, "stride": 2}],
            "d_model": 16,
            "heads": 2,
            "layers": 2,
        },
        "training": {
            "max_steps": 30,
            "optimizer": {"learning_rate": 0.01},
            "validation": {"every": 15, "metric": "accuracy", "mode": "max"},
            "checkpointing": {"every": 5, "log_every": 5},
        },
    }
    assignments = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    return config.from_dict(ImageClassificationConfig, config.apply_overrides(tree, assignments), "test")


def test_every_form_holds_the_same_images_under_names_that_find_them(folder: Path) -> None:
    images, labels = make_images()
    found = {
        "npz": sources.Npz(folder / "toy.npz").load_dataset(),
        "idx": sources.Idx(folder / "images.gz", folder / "labels.gz").load_dataset(),
    }
    for kind, album in found.items():
        names = [str(label) if kind == "idx" else ("above", "below")[label] for label in labels]
        assert album.labels == names and len(album) == COUNT
        for number in (0, 7, COUNT - 1):
            assert np.array_equal(album.read_pixels(number), images[number])
            assert np.array_equal(store.load_image(album.names[number]), images[number])
    files = sources.ImageFolder(folder / "classes").load_dataset()
    assert sorted(files.labels) == ["above"] * 30 + ["below"] * 30
    grey = {Path(name).stem: PLAIN.resize_and_crop(files.read_pixels(n))[..., 0] for n, name in enumerate(files.names)}
    assert all(np.array_equal(grey[f"{number:03}"], images[number]) for number in range(COUNT))
    with pytest.raises(DataError, match="images 0 to 59"):
        store.load_image(f"{folder / 'toy.npz'}#60")


def test_parquet_holds_files_and_names_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = sorted((folder / "classes").rglob("*.png"))
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    place = tmp_path / "toy.parquet"
    parquet.write_table(pyarrow.table({"image": cells, "label": [path.parent.name for path in files]}), place)
    album = sources.Parquet(place).load_dataset()
    assert album.labels == [path.parent.name for path in files]
    assert np.array_equal(album.read_pixels(3), sources.ImageFolder(folder / "classes").load_dataset().read_pixels(3))
    assert np.array_equal(store.load_image(f"{place}#3"), album.read_pixels(3))
    with pytest.raises(DataError, match="toy.parquet.*columns 'picture'"):
        sources.Parquet(place, image="picture").load_dataset()


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    pickled, cut, loose = tmp_path / "pickled.npz", tmp_path / "cut.idx", tmp_path / "loose"
    np.savez(pickled, images=np.array([{}], dtype=object), labels=[0])
    cut.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]))
    loose.mkdir()
    (loose / "a.png").write_bytes(b"")
    images, labels = make_images()
    with pytest.raises(DataError, match="pickled.npz.*nothing is unpickled"):
        sources.Npz(pickled).load_dataset()
    with pytest.raises(DataError, match="cut.idx is truncated"):
        sources.read_idx(cut)
    with pytest.raises(DataError, match="a.png is not in the folder of a class"):
        sources.ImageFolder(loose).load_dataset()
    with pytest.raises(DataError, match="no array 'pictures', its arrays are images, labels, classes"):
        sources.Npz(folder / "toy.npz", images="pictures").load_dataset()
    with pytest.raises(DataError, match="images are float64"):
        sources.dataset_from_arrays("x", images / 255, labels)
    with pytest.raises(DataError, match="expected 60 whole numbers"):
        sources.dataset_from_arrays("x", images, labels[:-1])
    (loose / "a.png").unlink()
    with pytest.raises(DataError, match="contains no images"):
        sources.ImageFolder(loose).load_dataset()
    with pytest.raises(CorpusError, match="contains no images; expected one of"):
        corpora.load_images("cmudict")


def test_images_of_two_sizes_and_many_broken_ones_are_refused_and_a_few_left_out(folder: Path, tmp_path: Path) -> None:
    images, _ = make_images()
    classes = tmp_path / "classes"
    for number in range(120):
        path = classes / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number % COUNT]).save(path)
    (classes / "a" / "000.png").write_bytes(b"no image")
    read = store.fit_images([sources.ImageFolder(classes).load_dataset()], PLAIN, ("a", "b"), tmp_path / "p.u8")
    assert len(read) == 119 and "000.png" in read.notes[0]
    assert torch.equal(read.select([0])[0, 0], torch.from_numpy(images[2]))
    (classes / "a" / "002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 120 images cannot be used, such as: .*000.png"):
        store.fit_images([sources.ImageFolder(classes).load_dataset()], PLAIN, ("a", "b"), tmp_path / "p.u8")
    Image.fromarray(images[0, :4]).save(classes / "b" / "001.png")
    with pytest.raises(DataError, match="005.png|003.png|004.png|001.png.*8 x 4 pixels"):
        store.fit_images([sources.ImageFolder(classes).load_dataset()], PLAIN, ("a", "b"), tmp_path / "p.u8")
    with pytest.raises(DataError, match="has the class 'b'; expected one of a"):
        store.fit_images([sources.ImageFolder(classes).load_dataset()], PLAIN, ("a",), tmp_path / "p.u8")


@pytest.mark.parametrize(
    "node",
    [RandomCrop(2), RandomHorizontalFlip(), RandomAffine(20, 0.1, 0.1, 0.1), ColorJitter(0.3, 0.3, 0.3), Cutout(0.5)],
    ids=lambda n: type(n).__name__,
)
def test_augmentation_changes_images_each_in_its_way_and_the_same_for_the_same_seed(node: object) -> None:
    images = torch.rand(16, 3, 8, 8) * 255
    torch.manual_seed(3)
    once = node(images.clone())  # type: ignore[operator]
    torch.manual_seed(3)
    again = node(images.clone())  # type: ignore[operator]
    assert torch.equal(once, again) and once.shape == images.shape
    assert 0 <= float(once.min()) and float(once.max()) <= 255.001
    assert not torch.equal(once, images)
    assert len({tuple((one - old).flatten().tolist()) for one, old in zip(once, images, strict=True)}) > 1


def test_augmentation_that_does_nothing_does_nothing_and_the_others_what_they_say() -> None:
    images = torch.rand(64, 1, 6, 6) * 255
    assert torch.allclose(RandomAffine()(images), images, atol=1e-3)
    assert torch.allclose(ColorJitter()(images), images, atol=1e-3)
    flipped = RandomHorizontalFlip()(images)
    mirrored = [torch.equal(one, old.flip(2)) for one, old in zip(flipped, images, strict=True)]
    same = [torch.equal(one, old) for one, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and any(mirrored) and any(same)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    for one, old in zip(RandomCrop(1)(images), padded, strict=True):
        assert any(torch.equal(one, old[:, y : y + 6, x : x + 6]) for y in range(3) for x in range(3))
    with pytest.raises(ConfigError, match="padding=0: expected at least 1 pixel"):
        RandomCrop(0)


def test_mixed_images_and_their_classes_are_blended_by_one_share() -> None:
    torch.manual_seed(0)
    shares = torch.nn.functional.one_hot(torch.arange(4), 4).float()
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    blended, labels = mixup(images, shares, 1.0)
    assert torch.allclose(labels.sum(1), torch.ones(4))
    assert torch.allclose(blended[:, 0, 0, 0], labels @ torch.arange(4.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_shares_is_that_of_labels_where_each_has_one(smoothing: float) -> None:
    logits = torch.randn(5, 7, requires_grad=True)
    labels = torch.randint(7, (5,))
    hard, plain = smoothed_and_plain_cross_entropy(logits, labels, smoothing)
    soft, also = smoothed_and_plain_cross_entropy(logits, torch.nn.functional.one_hot(labels, 7).float(), smoothing)
    assert torch.allclose(hard, soft) and torch.allclose(plain, also) and not also.requires_grad
    first, second = (torch.autograd.grad(one, logits)[0] for one in (hard, soft))
    assert torch.allclose(first, second, atol=1e-6)
    half = torch.full((1, 2), 0.5)
    assert float(cross_entropy(torch.zeros(1, 2), half)) == pytest.approx(np.log(2))


def test_a_stem_of_convolutions_makes_the_same_squares() -> None:
    choice = ViT(4, (spec.Convolution(8, 3, 2),), 16, 2, 1, 32, pooling="class").spec(8, 8, 3, 5)
    assert spec.from_json(spec.to_json(choice)) == choice
    model = build(choice)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert torch.equal(model(torch.randn(2, 3, 8, 8)), torch.zeros(2, 5)), "no class is likelier before the first step"
    with pytest.raises(SpecError, match="size=6 is not a multiple of 4"):
        spec.Patches(6, stem=(spec.Convolution(8, 3, 4),))
    with pytest.raises(SpecError, match="kernel_size=2 was given; it must be odd"):
        spec.Patches(4, stem=(spec.Convolution(8, 2, 2),))
    with pytest.raises(SpecError, match="10 x 8 pixels cannot be split into patches of patch_size=4"):
        ViT(4).spec(8, 10, 3, 2)
    assert build(ViT(4, positions="waves").spec(8, 12, 1, 3))(torch.randn(1, 1, 8, 12)).shape == (1, 3)


BATCH_NORM = {"stem_norm": "batch", "stem_residual": True}
STEM = (spec.Convolution(8, 3, 2), spec.Convolution(8, 3, 1), spec.Convolution(12, 3, 1))


@torch.no_grad()
def test_a_stem_normalises_over_the_batch_and_adds_what_keeps_its_shape() -> None:
    choice = ViT(4, STEM, 16, 2, 1, 32, **BATCH_NORM).spec(8, 8, 3, 5).encoder  # type: ignore[arg-type]
    assert choice is not None
    reader = inputs.build_embedding(choice)
    image = torch.randn(6, 3, 8, 8)

    def expected(means: list[Tensor] | None = None, variances: list[Tensor] | None = None) -> Tensor:
        seen = image
        for number, convolution in enumerate(reader.stem):
            made = torch.nn.functional.conv2d(seen, convolution.weight, None, STEM[number].stride, 1)
            if means is None or variances is None:
                mean, variance = made.mean((0, 2, 3)), made.var((0, 2, 3), unbiased=False)
            else:
                mean, variance = means[number], variances[number]
            made = (made - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
            made = torch.nn.functional.gelu(made)
            seen = seen + made if number == 1 else made
        squares = seen.reshape(6, 12, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        found: Tensor = reader.patches(squares) + reader.positions.weight
        return found

    reader.train()
    torch.testing.assert_close(reader(image), expected(), rtol=1e-4, atol=1e-5)
    norms = [step.norm for step in reader.stem]
    remembered = [[getattr(norm, name) for norm in norms] for name in ("running_mean", "running_var")]
    assert all(0.9 < float(one.mean()) < 1.0 for one in remembered[1]), "a tenth of the first batch is taken in"
    reader.eval()
    torch.testing.assert_close(reader(image), expected(*remembered), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecError, match="stem_norm=batch was given, and no stem"):
        spec.Patches(4, stem_norm="batch")
    with pytest.raises(SpecError, match="stem_residual=True was given, and no stem"):
        spec.Patches(4, stem_residual=True)


def test_a_square_sees_what_its_convolutions_reach_and_no_more() -> None:
    encoder = ViT(4, (spec.Convolution(8, 3, 2),), 16, 2, 1, 32).spec(16, 16, 1, 2).encoder
    assert encoder is not None
    reader = inputs.build_embedding(encoder)
    image = torch.zeros(1, 1, 16, 16)
    changed = image.clone()
    changed[..., 15, 15] = 1.0
    moved = (reader(changed) - reader(image)).abs().amax(-1)[0].reshape(4, 4) > 0
    assert moved[3, 3] and not moved[:3].any() and not moved[:, :3].any()


@pytest.mark.parametrize("stem", ["plain", "batch norm", "batch norm, with a helper"])
def test_a_model_learns_is_resumed_to_the_same_bytes_scored_asked_and_looked_into(
    stem: str, folder: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes: dict[str, object] = {}
    if stem != "plain":
        sizes = [{"channels": 8, "kernel_size": 3, "stride": stride} for stride in (2, 1)]
        changes = {"model": {"kind": "vit", "d_model": 16, "heads": 2, "layers": 2, "stem": sizes, **BATCH_NORM}}
        changes |= {"training.ema_decay": 0.8, "training.optimizer.muon": {}}
    if "helper" in stem:
        changes["training.workers"] = 2
    learned = tasks.train(build_recipe(folder, **changes), folder=whole, reporter=NullReporter())
    assert learned.result.metrics["accuracy"] == 100
    assert not (whole / "tokens").exists()

    class Stop(NullReporter):
        def on_step_end(self, step: int, progress: float) -> None:
            if step == 17:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tasks.train(build_recipe(folder, **changes), folder=parts, reporter=Stop())
    tasks.train(build_recipe(folder, **changes), folder=parts, resume=True, reporter=NullReporter())
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()

    runner = tasks.load(whole)
    kept, read = learned.model.module.state_dict(), runner.module.state_dict()
    assert kept.keys() == read.keys() and all(torch.equal(tensor, read[name]) for name, tensor in kept.items())
    assert isinstance(runner, EncoderModel) and runner.labels == ("above", "below")
    lines = [f"{folder / 'toy.npz'}#{number}" for number in range(4)]
    files = [str(folder / "classes" / name / f"00{n}.png") for n, name in enumerate(("above", "below", "above"))]
    told = ["above", "below", "above", "below"]
    assert [one[0].text for one in runner.predict_ranked(lines)] == told
    assert [one[0].text for one in runner.predict_ranked([*files, "", lines[3]])] == [*told[:3], "", told[3]]
    answered = runner.predict_ranked([lines[0], "nowhere.png", lines[1]])
    assert next(answered)[0].text == "above"
    with pytest.raises(DataError, match="nowhere.png does not exist"):
        next(answered)
    looked = runner.look(lines[1])
    assert looked.answer.text == "below" and looked.source_tokens == ["1,1", "1,2", "2,1", "2,2"]
    assert max(float(worst.max()) for worst in looked.certify().values()) < 1e-5
    pairs = tasks.load_image_labels([folder / "toy.npz"])
    assert pairs is not None and tasks.evaluate(runner, pairs).scores["accuracy"].value == 100
    with pytest.raises(DataError, match="toy.npz#1 is of the class 'below', and 30 of 60 images are of no class"):
        tasks.load_image_labels([folder / "toy.npz"], classes=("above",))


def test_a_trained_model_is_gone_on_from(folder: Path, tmp_path: Path) -> None:
    first = tasks.train(build_recipe(folder), folder=tmp_path / "first", reporter=NullReporter())
    onwards = {"model": {"kind": "pretrained", "path": str(tmp_path / "first")}, "data.grayscale": False}
    again = tasks.train(
        build_recipe(folder, **onwards, **{"training.max_steps": 1, "training.optimizer.learning_rate": 1e-9}),
        folder=tmp_path / "again",
        reporter=NullReporter(),
    )
    close = first.model.module.state_dict()
    assert all(torch.allclose(value, close[name], atol=1e-4) for name, value in again.model.module.state_dict().items())
    assert again.result.metrics["accuracy"] == 100
    with pytest.raises(ConfigError, match="data.size: given with model.path"):
        tasks.train(
            build_recipe(folder, **onwards, **{"data.size": [8, 8]}), folder=tmp_path / "run", reporter=NullReporter()
        )
    with pytest.raises(ConfigError, match="model.path=pronunciation: reads no images"):
        strange = {"model": {"kind": "pretrained", "path": "pronunciation"}, "data.grayscale": False}
        tasks.train(build_recipe(folder, **strange), folder=tmp_path / "run", reporter=NullReporter())


def test_a_published_model_learns_other_classes(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    theirs = transformers.ViTConfig(**shape, image_size=12, patch_size=4, num_labels=3)
    transformers.ViTForImageClassification(theirs).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 12, "width": 12}).save_pretrained(tmp_path / "vit")
    onwards = {"model": {"kind": "pretrained", "path": str(tmp_path / "vit")}, "data.grayscale": False}
    learned = tasks.train(
        build_recipe(folder, **onwards, **{"data.augmentation": []}), folder=tmp_path / "run", reporter=NullReporter()
    )
    assert learned.result.metrics["accuracy"] == 100
    opened = tasks.load(tmp_path / "run")
    assert isinstance(opened, EncoderModel) and opened.labels == ("above", "below")
    answers = [one[0].text for one in opened.predict_ranked([str(folder / "classes" / "below" / "001.png")])]
    assert answers == ["below"]


def test_a_card_that_does_not_fit_its_model_is_refused(folder: Path, tmp_path: Path) -> None:
    runner = tasks.train(
        build_recipe(folder, **{"training.max_steps": 1}), folder=tmp_path / "m", reporter=NullReporter()
    ).model
    card = tmp_path / "m" / "card.json"
    kept = card.read_text(encoding="utf-8")
    assert tasks.load(tmp_path / "m").processor == runner.processor  # type: ignore[union-attr]
    for old, new, error in (
        ('"below"', '"below", "beside"', CheckpointError),
        ('"image_processor"', '"log_mel"', ConfigError),
        ('"grayscale": true', '"grayscale": false', ConfigError),
        ('"labels"', '"names"', ConfigError),
    ):
        card.write_text(kept.replace(old, new), encoding="utf-8")
        with pytest.raises(error, match="card.json"):
            tasks.load(tmp_path / "m")


def test_images_to_check_on_are_not_learned_from(folder: Path, tmp_path: Path) -> None:
    images, labels = make_images()
    np.savez(tmp_path / "test.npz", images=images[:10], labels=labels[:10], classes=np.array(["above", "below"]))
    notes: list[str] = []

    class Noting(NullReporter):
        def message(self, text: str) -> None:
            notes.append(text)

    given = build_recipe(
        folder, **{"data.test": [{"kind": "npz", "path": str(tmp_path / "test.npz")}], "training.max_steps": 1}
    )
    tasks.train(given, folder=tmp_path / "run", reporter=Noting())
    assert any(note.startswith("10 images left out") for note in notes)
    learned = int(next(note for note in notes if "to train on" in note).split()[0])
    assert learned <= 50 and load_data(given).classes == ("above", "below")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training.validation.metric": "bleu"}, "expected one of loss, accuracy"),
        ({"training.validation.mode": "min"}, "accuracy needs mode max"),
        ({"data.mixup": 0}, "mixup=0"),
        ({"data.batch_size": 0}, "batch_size=0"),
        ({"model.patch_size": 3}, "size=3 is not a multiple of 2"),
        ({"data.size": [9, 9]}, "cannot be split into patches of patch_size=4"),
        ({"model.heads": 3}, "not a multiple of heads=3"),
    ],
)
def test_recipes_that_cannot_be_carried_out_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(QkvError, match=said):
        tasks.train(build_recipe(folder, **change), folder=tmp_path / "run", reporter=NullReporter())


@pytest.mark.parametrize("name", ["digits", "mnist-10k", "cifar10-jpeg"])
def test_named_images_are_as_recorded(name: str) -> None:
    for split, count in corpora.find_corpus(name).splits.items():
        try:
            album = corpora.load_images(name, split)
        except (CorpusError, MissingExtraError) as error:
            pytest.skip(f"{name} is not at hand: {error}")
        assert len(album) == count and len(set(album.labels)) == 10
        assert np.array_equal(store.load_image(album.names[count - 1]), album.read_pixels(count - 1))
        assert corpora.load_pairs(name, split)[0] == (album.names[0], album.labels[0])


@pytest.mark.parametrize("name", ["image-classification", "mnist", "cifar10"])
def test_recipes_that_come_along_are_whole(name: str) -> None:
    found = tasks.read_recipe(name)
    assert isinstance(found, ImageClassificationConfig) and isinstance(found.model, ViT)
    assert found.model.spec(
        *{"image-classification": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[name], 10
    )


def test_the_command_evaluates_a_folder_and_lists_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks.train(build_recipe(folder), folder=tmp_path / "m", reporter=NullReporter())
    for arguments in (
        ["evaluate", str(tmp_path / "m"), str(folder / "classes")],
        ["run", str(tmp_path / "m"), f"{folder / 'toy.npz'}#1"],
        ["look", str(tmp_path / "m"), f"{folder / 'toy.npz'}#1", "--html", str(tmp_path / "look.html")],
        ["describe", str(tmp_path / "m")],
        ["data", "list"],
    ):
        main(arguments, standalone_mode=False)
    said = capsys.readouterr().out
    assert "accuracy              100.00" in said and "images: train 10,000, test 10,000" in said
    assert (
        "Patches(size=4, channels=1, class_tokens=0)" in said
        and "Convolution(channels=8, kernel_size=3, stride=2)" in said
    )
