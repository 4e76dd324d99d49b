"""The embedded model's further weights: diffusers' pipelines load them and make the same pictures, and each is felt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import rawdiff
from rawdiff import Control, Model, Run
from scripts.embedded import metrics
from scripts.embedded.base import build, new_net
from scripts.embedded.captions import captions
from scripts.embedded.folder import load_committed
from scripts.embedded.inversion import WORD
from scripts.embedded.looks import LOOKS
from scripts.embedded.lora import RANKS, LoRA, Restyled
from scripts.embedded.nets import TOGETHER, astray, unlike
from scripts.embedded.objective import SETTLED, Objective
from scripts.embedded.painting import Painter, pixels
from scripts.embedded.palette import COLOURS
from scripts.embedded.steering import Scene, scene
from scripts.embedded.text import load_tokenizer, token_ids
from scripts.embedded.training import ASSETS
from tests.lora_files import same, state
from tests.reference import grey_levels, silent

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROMPT = "a red sphere to the left of a blue cube on grass in daylight"
NATIVE = (128, 128)
CALL: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 3.0}
KINDS = ("depth", "normal", "canny")
FELT = 8  # grey levels that leaving something out moves some pixel by, at least


@pytest.fixture(scope="module")
def model() -> Model:
    return rawdiff.load(device="cpu")


@pytest.fixture(scope="module")
def seen() -> Scene:
    return scene(8, 61_000)


def pipeline(name: str, **parts: Any) -> Any:
    import diffusers

    made = getattr(diffusers, f"StableDiffusion{name}Pipeline").from_pretrained(ASSETS, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def theirs(made: Any, prompt: str = PROMPT, **call: Any) -> Any:
    return made(prompt, generator=torch.Generator().manual_seed(7), **CALL, **call).images[0]


def ours(model: Model, prompt: str = PROMPT, **options: Any) -> Run:
    run = model.prepare(prompt, size=NATIVE, guidance=3.0, steps=6, seed=7, say=silent, **options)
    list(run)
    return run


def control(seen: Scene, kind: str, weight: float = 1.0) -> Control:
    if kind == "canny":
        return Control(kind, pixels(seen.true.picture[0]), weight, derive=True)
    return Control(kind, seen.true.disparity[0, 0], weight, derive=kind == "normal")


# ------------------------------------------------------------------------------------------- ControlNets


@pytest.mark.parametrize("kinds", [("normal",), ("canny",), KINDS], ids=", ".join)
def test_nets_alone_and_together_are_as_in_diffusers(
    model: Model, seen: Scene, kinds: tuple[str, ...]
) -> None:
    from diffusers import ControlNetModel

    weight = 1 / len(kinds)
    run = ours(model, controls=[control(seen, kind, weight) for kind in kinds])
    nets = [ControlNetModel.from_pretrained(ASSETS / f"controlnet_{kind}") for kind in kinds]
    one = len(kinds) == 1
    hints = [hint.tensor[None] for hint in run.hints]
    made = pipeline("ControlNet", controlnet=nets[0] if one else nets)
    shown = {"image": hints[0] if one else hints}
    scales = {"controlnet_conditioning_scale": weight if one else [weight] * len(kinds)}
    assert grey_levels(run.image(), theirs(made, **shown, **scales)) <= 1
    for kind in kinds:
        less = ours(model, controls=[control(seen, k, weight) for k in kinds if k != kind])
        assert grey_levels(less.image(), run.image()) >= FELT, kind


# ------------------------------------------------------------------------------------------- inpainting


def test_inpainting_is_as_in_diffusers(model: Model, seen: Scene) -> None:
    from diffusers import UNet2DConditionModel

    picture = seen.true.picture[:1]
    mask = torch.zeros(1, 1, *NATIVE)
    mask[..., 40:104, 32:88] = 1
    made = pipeline("Inpaint", unet=UNet2DConditionModel.from_pretrained(ASSETS / "unet_inpaint"))
    size = {"height": NATIVE[0], "width": NATIVE[1]}
    expected = theirs(made, image=picture * 2 - 1, mask_image=mask, **size)
    given: dict[str, Any] = {"image": picture[0].permute(1, 2, 0).numpy(), "mask": mask[0, 0].numpy()}
    assert grey_levels(ours(model, **given, paste=False).image(), expected) <= 1
    assert grey_levels(ours(model).image(), expected) >= 20


# ------------------------------------------------------------------------------------------- LoRAs


@pytest.mark.parametrize("layout", ["", "-diffusers"], ids=["kohya", "diffusers"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_lora_is_as_in_diffusers(model: Model, look: str, layout: str) -> None:
    pytest.importorskip("peft")
    path = ASSETS / "loras" / f"{look}{layout}.safetensors"
    made = pipeline("")
    made.load_lora_weights(str(path.parent), weight_name=path.name)
    expected = theirs(made, height=NATIVE[0], width=NATIVE[1])
    with_it = ours(model, loras=[(str(path), 1.0)])
    assert grey_levels(with_it.image(), expected) <= 1
    assert grey_levels(ours(model).image(), expected) >= 20


def test_taking_the_loras_off_restores_every_weight_to_the_bit() -> None:
    model = rawdiff.load(device="cpu")
    networks = {"unet": model.unet, "text_encoder": model.text_encoder}
    before = state(networks)
    plain = ours(model).image()
    both = ours(model, loras=[(look, 0.5) for look in LOOKS]).image()
    assert not same(state(networks), before)
    assert grey_levels(both, plain) >= 20
    assert grey_levels(ours(model).image(), plain) == 0
    assert same(state(networks), before)


def test_both_layouts_hold_the_same_and_stay_below_a_megabyte() -> None:
    for look in LOOKS:
        paths = [ASSETS / "loras" / f"{look}{layout}.safetensors" for layout in ("", "-diffusers")]
        held = []
        for path in paths:
            assert path.stat().st_size <= 1_000_000
            with safe_open(path, "pt") as file:
                names = file.keys()
                tensors = [file.get_tensor(name) for name in names if not name.endswith(".alpha")]
                alphas = {float(file.get_tensor(name)) for name in names if name.endswith(".alpha")}
                held.append(sorted(float(tensor.float().square().sum()) for tensor in tensors))
                assert alphas <= {float(RANKS[look])}
        assert held[0] == held[1]


# ------------------------------------------------------------------------------------------- an embedding


def test_the_embedding_is_as_in_diffusers_and_named_by_its_word(model: Model) -> None:
    prompt = f"a {WORD} sphere on sand in daylight"
    made = pipeline("")
    made.load_textual_inversion(str(ASSETS / "embeddings"), weight_name=f"{WORD}.safetensors", token=WORD)
    expected = theirs(made, prompt, height=NATIVE[0], width=NATIVE[1])
    assert grey_levels(ours(model, prompt, embeddings=[WORD]).image(), expected) <= 1
    assert grey_levels(ours(model, prompt).image(), expected) >= 20


# ------------------------------------------------------------------------------------------- pictures
# Looser than the model card's bounds: a few pictures, to notice that something broke.


def test_edges_and_normals_alone_place_the_objects(model: Model, seen: Scene) -> None:
    paint = Painter(model)
    alone = paint(seen.prompts, NATIVE, "no net")
    for kind in ("canny", "normal"):
        maps = seen.maps() if kind == "normal" else [pixels(p) for p in seen.true.picture]
        given: list[Any] = [[Control(kind, source, derive=True)] for source in maps]
        made = paint(seen.prompts, NATIVE, kind, controls=given)
        found = metrics.scores(made, seen.scenes, seen.true.ids)["silhouette IoU"]
        assert found >= 0.75, kind
        assert metrics.scores(alone, seen.scenes, seen.true.ids)["silhouette IoU"] < 0.6 * found


def test_what_is_asked_for_in_a_hole_is_painted_there(model: Model) -> None:
    held = scene(6, 61_100, single=True)
    paint = Painter(model)
    held.scenes.colour[:, 0] = (held.scenes.colour[:, 0] + 3) % len(COLOURS)
    prompts = captions(held.scenes, 61_100)
    where = held.true.ids == 0
    masks = [torch.nn.functional.max_pool2d(m[None, None].float(), 11, 1, 5)[0, 0] for m in where]
    pictures = [pixels(p) for p in held.true.picture]
    made = paint(prompts, NATIVE, "inpainted", image=pictures, mask=masks)
    reading = metrics.read_colours(made)
    right = 0
    for k, mask in enumerate(masks):
        inside = reading.colour[k][reading.solid[k] & (mask > 0)]
        right += int(len(inside) > 0 and int(inside.bincount().argmax()) == int(held.scenes.colour[k, 0]))
        outside = (mask == 0).numpy()
        assert np.array_equal(pixels(made[k])[outside], pictures[k][outside])
    assert right >= 4


def test_a_look_is_learnt_from_what_tells_two_pictures_apart() -> None:
    modules = build()
    load_committed(modules)
    for module in modules.values():
        module.eval().requires_grad_(False)
    lora = LoRA(modules, 4)
    tokenizer = load_tokenizer()
    empty, tokens = (token_ids(tokenizer, [text] * 3) for text in ("", PROMPT))
    objective = Restyled(lora, modules, torch.device("cpu"), 0.2, empty[:1])
    g = torch.Generator().manual_seed(5)
    plain, look = (torch.randn(3, 4, 16, 16, generator=g) for _ in range(2))
    given = tokens, {"depth": torch.rand(2, 3, *NATIVE)}, torch.rand(3, 1, 16, 16)
    assert objective.against(plain, plain, *given).item() == 0.0  # not that the model knew these pictures
    loss = objective.against(look, plain, *given)
    loss.backward()
    assert loss.item() > 0.1
    assert all(up.grad is not None and bool(up.grad.any()) for up in lora.up)
    assert lora.scale == 1.0


def test_nets_follow_the_one_that_has_learnt() -> None:
    modules = build()
    load_committed(modules)
    for module in modules.values():
        module.eval().requires_grad_(False)
    depth, net = modules["controlnet_depth"], new_net(modules["unet"])
    net.load_state_dict(depth.state_dict())
    modules["controlnet_normal"] = net
    objective = Objective(modules, torch.device("cpu"))
    hint, other = torch.rand(2, 3, *NATIVE), torch.rand(2, 3, *NATIVE)
    given = objective, torch.randn(2, 4, 16, 16), token_ids(load_tokenizer(), [PROMPT] * 2)
    assert unlike(*given, {"depth": hint, "normal": hint}, "depth").item() == pytest.approx(0, abs=1e-5)
    loss = unlike(*given, {"depth": hint, "normal": other}, "depth")
    loss.backward()
    assert loss.item() > 0.01
    for part in net.parameters():
        assert part.grad is not None
    assert all(part.grad is None for module in (depth, modules["unet"]) for part in module.parameters())
    with torch.no_grad():  # as to say, and twice as loud
        net.load_state_dict(depth.state_dict())
        for name, weight in net.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                weight.mul_(2)
    louder = unlike(*given, {"depth": hint, "normal": hint}, "depth").item()
    assert louder == pytest.approx(1, abs=1e-4)
    modules["controlnet_canny"] = depth  # says what depth does: of both the mean is half as much too loud
    both = unlike(*given, {"depth": hint, "normal": hint, "canny": hint}, "depth").item()
    assert both == pytest.approx((1 + 0 + TOGETHER * 0.25) / (2 + TOGETHER), abs=1e-4)


def test_half_of_the_pictures_go_astray_by_one_latent() -> None:
    x0 = torch.arange(4.0 * 2 * 5 * 6).reshape(4, 2, 5, 6)
    ways = set()
    for _ in range(60):
        moved = astray(x0)
        assert torch.equal(moved[:2], x0[:2])
        same = [
            (d, r)
            for d in (-1, 0, 1)
            for r in (-1, 0, 1)
            if torch.equal(moved[2:], x0[2:].roll((d, r), (2, 3)))
        ]
        assert len(same) == 1
        ways.add(same[0])
    assert len(ways) > 4
    stays = [torch.equal(astray(x0[:1]), x0[:1]) for _ in range(60)]
    assert 20 < sum(stays) < 50  # half of the times, and once in nine of the others


def test_errors_outside_a_mask_count_as_often_as_is_asked() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, *rest: Any, **more: Any) -> Any:
            return SimpleNamespace(sample=torch.zeros_like(x[:, :4]), last_hidden_state=None)

    parts: dict[str, torch.nn.Module] = {"unet": Nothing(), "text_encoder": Nothing()}
    x0, tokens = torch.randn(2, 4, 16, 16), torch.zeros(2, 77, dtype=torch.long)

    def loss(mask: float, **more: Any) -> float:
        torch.manual_seed(3)
        masks, given = torch.full((2, 1, 16, 16), mask), torch.zeros(2, 5, 16, 16)
        return float(Objective(parts, torch.device("cpu"), **more)(x0, tokens, None, masks, given))

    assert loss(0, outside=10) == pytest.approx(11 * loss(0), rel=1e-5)
    assert loss(1, outside=10) == pytest.approx(loss(1), rel=1e-6)
    assert loss(1, inside=2) == pytest.approx(3 * loss(0), rel=1e-5)


def test_what_is_seen_already_need_not_be_told() -> None:
    class Told(torch.nn.Module):
        """Says of the words how many there are, and of a hint how bright it is."""

        def forward(self, x: torch.Tensor, *rest: Any, **more: Any) -> Any:
            if x.dtype == torch.long:
                return SimpleNamespace(last_hidden_state=(x > 0).sum(1).float().view(-1, 1, 1, 1))
            brightness = more.get("mid_block_additional_residual", 0)
            return SimpleNamespace(sample=torch.zeros_like(x) + rest[1] + brightness)

    class Hinted(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, t: Any, words: Any, hint: torch.Tensor, *rest: Any, **more: Any
        ) -> Any:
            bright = hint.mean((1, 2, 3)).view(-1, 1, 1, 1)
            return [bright], bright

    parts: dict[str, torch.nn.Module] = {"unet": Told(), "text_encoder": Told(), "controlnet_depth": Hinted()}
    x0, inside = torch.randn(4, 4, 16, 16), torch.zeros(4, 1, 16, 16)
    tokens, empty = torch.zeros(4, 77, dtype=torch.long), torch.zeros(1, 77, dtype=torch.long)
    tokens[0, :2] = tokens[3, :3] = 1  # two and three words; the others are told nothing
    hints = {"depth": torch.rand(2, 3, *NATIVE)}

    def agreeing(steps: list[int], agree: float, masks: torch.Tensor = inside) -> float:
        class At(Objective):
            def noised(self, x0: torch.Tensor, t: torch.Tensor | None = None) -> Any:
                torch.manual_seed(3)
                return super().noised(x0, torch.tensor(steps))

        told = At(parts, torch.device("cpu"), empty=empty, agree=agree)
        return float(told(x0, tokens, hints, masks))

    low, high = [SETTLED - 1] * 4, [SETTLED] * 4
    assert agreeing(low, 0.5) - agreeing(low, 0) == pytest.approx(0.5 * (2**2 + 3**2) / 4, rel=1e-4)
    first = [SETTLED - 1, 0, 0, SETTLED]
    assert agreeing(first, 1) - agreeing(first, 0) == pytest.approx(2**2 / 4, rel=1e-4)
    last = [SETTLED] * 3 + [0]  # a picture without its hint
    assert agreeing(last, 1) - agreeing(last, 0) == pytest.approx(3**2 / 4, rel=1e-4)
    assert agreeing(high, 1) == agreeing(high, 0)
    with pytest.raises(ValueError, match="empty caption"):
        Objective(parts, torch.device("cpu"), agree=1)
    there = inside + 1  # in objects it counts more, as all errors do
    assert agreeing(low, 1, there) - agreeing(low, 0, there) == pytest.approx(3 * (2**2 + 3**2) / 4, rel=1e-4)
