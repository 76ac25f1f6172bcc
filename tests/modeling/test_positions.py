"""Absolute positions at other sizes, relative biases and their reuse, against formulas and timm's own outputs."""

import copy
import itertools
import math
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import paths
from small_models import tiny_config
from vitrail.modeling import modeling_vit
from vitrail.modeling.modeling_vit import (
    ViTModel,
    ViTRelativePosition,
    ViTRelativePositionMLP,
    ViTRelativePositionTable,
    interpolate_positions,
    relative_position_index,
)

GOLDEN = paths.GOLDEN / "timm_relative_positions.safetensors"
PATCH = 4


def make_config(grid=(4, 6), **fields):
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    return tiny_config(**{**small, "image_size": (PATCH * grid[0], PATCH * grid[1]), "patch_size": PATCH, **fields})


def make_model(**fields):
    torch.manual_seed(0)
    model = ViTModel(make_config(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def make_images(grid):
    return torch.randn(1, 3, PATCH * grid[0], PATCH * grid[1], generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run(model, grid):
    return model(make_images(grid)).last_hidden_state


# -------------------------------------------------------------------------------------------------------- absolute positions


def cubic(distance, a):
    """Keys' kernel: a is -0.75 in torch's bicubic interpolation, and -0.5 in Pillow's and in torch's antialiased one."""
    x = abs(distance)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def triangle(distance):
    return max(0.0, 1 - abs(distance))


def interpolation_matrix(length, new_length, *, mode, offset=0.0, antialias=False, align_corners=False):
    """Row i holds what each old position contributes to new position i."""
    matrix = torch.zeros(new_length, length, dtype=torch.float64)
    scale = length / (new_length + offset)
    for new in range(new_length):
        center = new * (length - 1) / max(new_length - 1, 1) if align_corners else (new + 0.5) * scale - 0.5
        if antialias:
            stretch = max(scale, 1.0)
            kernel = triangle if mode == "bilinear" else lambda x: cubic(x, -0.5)
            weights = [kernel((old - center) / stretch) for old in range(length)]
            matrix[new] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            continue
        kernel = triangle if mode == "bilinear" else lambda x: cubic(x, -0.75)
        for old in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[new, min(max(old, 0), length - 1)] += kernel(old - center)
    return matrix


RULES = {
    "google": {"mode": "bilinear", "align_corners": True},
    "dino": {"mode": "bicubic", "offset": 0.1},
    "dinov2_with_registers": {"mode": "bicubic", "antialias": True},
    "timm": {"mode": "bicubic", "antialias": True},
    "plain": {"mode": "bicubic"},
    "bicubic_corners": {"mode": "bicubic", "align_corners": True},
    "bilinear": {"mode": "bilinear"},
    "bilinear_antialias": {"mode": "bilinear", "antialias": True},
}
GRIDS = [(4, 6), (6, 4), (2, 3), (3, 9), (8, 12), (11, 5), (1, 1), (4, 7)]


def config_of(rule, **fields):
    return make_config(**{f"position_interpolation_{key}": value for key, value in RULES[rule].items()}, **fields)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rule", RULES)
def test_interpolation_is_the_formula(rule, grid):
    positions = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0))
    rows = interpolation_matrix(4, grid[0], **RULES[rule])
    columns = interpolation_matrix(6, grid[1], **RULES[rule])
    expected = torch.einsum("ri,cj,ijd->rcd", rows, columns, positions[0].view(4, 6, 8).double()).flatten(0, 1)
    resized = interpolate_positions(positions, grid, config_of(rule))
    assert resized.shape == (1, grid[0] * grid[1], 8)
    torch.testing.assert_close(resized[0].double(), expected, atol=2e-5, rtol=0)


def test_aligned_corners_by_hand():
    config = make_config(grid=(2, 2), position_interpolation_mode="bilinear", position_interpolation_align_corners=True)
    positions = torch.tensor([0.0, 2.0, 4.0, 8.0]).view(1, 4, 1)
    resized = interpolate_positions(positions, (3, 3), config)
    expected = torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.5, 5.0], [4.0, 6.0, 8.0]])
    torch.testing.assert_close(resized.view(3, 3), expected)


@pytest.mark.parametrize("grid", [(14, 14), (28, 28), (6, 6), (30, 40), (13, 17), (60, 7), (37, 37)])
def test_the_offset_is_dinos_rule(grid):
    """DINO, vision_transformer.py, interpolate_pos_encoding: a scale factor of (w0 + 0.1) / sqrt(N) for each side."""
    config = make_config(grid=(14, 14), position_interpolation_offset=0.1)
    positions = torch.randn(1, 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    height, width = grid[0] + 0.1, grid[1] + 0.1
    expected = F.interpolate(
        positions.reshape(1, int(math.sqrt(196)), int(math.sqrt(196)), 8).permute(0, 3, 1, 2),
        scale_factor=(height / math.sqrt(196), width / math.sqrt(196)),
        mode="bicubic",
    )
    assert expected.shape[-2:] == grid
    expected = expected.permute(0, 2, 3, 1).view(1, -1, 8)
    assert torch.equal(interpolate_positions(positions, grid, config), expected)
    without = interpolate_positions(positions, grid, make_config(grid=(14, 14)))
    assert not torch.allclose(without, expected, atol=1e-4)


@pytest.mark.parametrize("length", [*range(1, 65), 96, 128, 187])
def test_the_offset_never_misses_the_grid(length):
    config = make_config(grid=(14, 16), position_interpolation_offset=0.1)
    positions = torch.zeros(1, 14 * 16, 1)
    assert interpolate_positions(positions, (length, 2), config).shape[1] == 2 * length
    assert interpolate_positions(positions, (2, length), config).shape[1] == 2 * length


@pytest.mark.parametrize("fields", [{}, {"use_cls_position": False}, {"use_cls_token": False, "pooling": "avg"}])
@pytest.mark.parametrize("grid", [(3, 5), (6, 4)])
@torch.no_grad()
def test_the_position_of_cls_is_not_resized(fields, grid):
    model = make_model(num_register_tokens=2, **fields)
    embeddings, config = model.embeddings, model.config
    has_cls = config.use_cls_token and config.use_cls_position
    assert embeddings.position_embeddings.shape[1] == 24 + has_cls
    positions = embeddings.positions(grid)
    patch_positions = embeddings.position_embeddings[:, has_cls:]
    assert torch.equal(positions[:, has_cls:], interpolate_positions(patch_positions, grid, config))
    assert torch.equal(positions[:, :has_cls], embeddings.position_embeddings[:, :has_cls])
    tokens = embeddings(make_images(grid))
    prefix = [embeddings.cls_token[0] + positions[0, :1] * has_cls] if config.use_cls_token else []
    prefix = torch.cat([*prefix, embeddings.register_tokens[0]])  # registers have no position
    torch.testing.assert_close(tokens[0, : config.num_prefix_tokens], prefix)
    patches = embeddings.patch_embeddings(make_images(grid)) + positions[:, has_cls:]
    torch.testing.assert_close(tokens[:, config.num_prefix_tokens :], patches)


@pytest.mark.parametrize("rule", RULES)
def test_the_trained_grid_is_left_alone(rule):
    model = ViTModel(config_of(rule))
    assert model.embeddings.positions((4, 6)) is model.embeddings.position_embeddings
    transposed = model.embeddings.positions((6, 4))  # as many patches, another grid
    assert not torch.allclose(transposed, model.embeddings.position_embeddings, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_interpolation_runs_in_float32(rule, dtype):
    model = ViTModel(config_of(rule)).to(dtype).eval()
    positions = model.embeddings.positions((7, 5))
    assert positions.dtype == dtype
    patch_positions = model.embeddings.position_embeddings[:, 1:].float()
    expected = interpolate_positions(patch_positions, (7, 5), model.config)
    assert expected.dtype == torch.float32
    assert torch.equal(positions[:, 1:], expected.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(interpolate_positions(patch_positions, (7, 5), model.config), expected)


# -------------------------------------------------------------------------------------------------------- relative positions


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 2), (4, 4)])
def test_relative_position_index_counts_offsets(grid):
    height, width = grid
    index = relative_position_index(grid, torch.device("cpu")).view(height, width, height, width)
    for y, x, other_y, other_x in itertools.product(range(height), range(width), range(height), range(width)):
        row, column = divmod(index[y, x, other_y, other_x].item(), 2 * width - 1)
        assert (row - (height - 1), column - (width - 1)) == (y - other_y, x - other_x)


TIMM = load_file(GOLDEN)


@pytest.mark.parametrize("name", [name for name in TIMM if "/bias/" in name])
@torch.no_grad()
def test_relative_biases_are_timms(name):
    kind, trained, tokens, _, grid = name.split("/")
    config = make_config(
        grid=tuple(map(int, trained.split("x"))),
        position_embedding_type=f"relative_{kind}",
        relative_position_hidden_size=16,
        use_cls_token=tokens == "cls+patches",
        pooling="avg",
    )
    if kind == "table":
        module = ViTRelativePositionTable(config)
        names = {"table": "relative_position_bias_table"}
    else:
        module = ViTRelativePositionMLP(config)
        names = {f"fc{n}.{part}": f"mlp.fc{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    module.load_state_dict({ours: TIMM[f"{kind}/{trained}/{tokens}/weights/{theirs}"] for ours, theirs in names.items()})
    bias = module.eval()(tuple(map(int, grid.split("x"))))
    torch.testing.assert_close(bias, TIMM[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["relative_table", "relative_mlp"])
@torch.no_grad()
def test_a_shared_bias_is_one_module_and_reaches_every_block(kind):
    shared = make_model(position_embedding_type=kind, share_relative_position=True)
    per_block = make_model(position_embedding_type=kind)
    count = sum("relative_position" in name for name, _ in shared.named_parameters())
    assert sum("relative_position" in name for name, _ in per_block.named_parameters()) == 2 * count
    assert all(layer.attention.relative_position is None for layer in shared.layers)
    weights = shared.state_dict()
    for layer in range(2):
        for name in [name for name in weights if name.startswith("relative_position.")]:
            weights[f"layers.{layer}.attention.{name}"] = weights[name]
    weights = {name: value for name, value in weights.items() if not name.startswith("relative_position.")}
    per_block.load_state_dict(weights)
    for grid in ((4, 6), (3, 5)):
        assert torch.equal(run(per_block, grid), run(shared, grid))


@pytest.mark.parametrize("kind", ["relative_table", "relative_mlp"])
@torch.no_grad()
def test_relative_biases_in_half_precision(kind):
    half = make_model(position_embedding_type=kind).bfloat16()
    full = copy.deepcopy(half).float()  # the same, rounded, weights
    for grid in ((4, 6), (3, 5)):
        bias, expected = (model.layers[0].attention.relative_position(grid) for model in (half, full))
        assert bias.dtype == torch.bfloat16
        if kind == "relative_table":  # the table is resized in float32
            assert torch.equal(bias, expected.bfloat16())
        else:
            torch.testing.assert_close(bias.float(), expected, atol=0.03, rtol=0.03)


def test_the_relative_mlp_has_its_dropout_in_training_only():
    module = ViTRelativePositionMLP(make_config(position_embedding_type="relative_mlp", relative_position_hidden_size=4096))
    seen = []
    module.fc2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    dropped = (module.train()((4, 6)), seen.pop())[1]
    with torch.no_grad():
        kept = (module.eval()((4, 6)), seen.pop())[1]
    active = kept > 0
    assert (dropped[active] == 0).float().mean().item() == pytest.approx(0.125, abs=0.01)  # timm, RelPosMlp: drop=(0.125, 0.)
    torch.testing.assert_close(dropped[active & (dropped != 0)], (kept / (1 - 0.125))[active & (dropped != 0)])


# -------------------------------------------------------------------------------------------------------- reuse of positions

GRID = (3, 5)
KINDS = {
    "absolute": {},
    "table": {"position_embedding_type": "relative_table"},
    "table_shared": {"position_embedding_type": "relative_table", "share_relative_position": True},
    "mlp": {"position_embedding_type": "relative_mlp"},
    "mlp_shared": {"position_embedding_type": "relative_mlp", "share_relative_position": True},
}
MODULES = {"absolute": 1, "table": 2, "table_shared": 1, "mlp": 2, "mlp_shared": 1}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_relative_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "absolute"])


@pytest.fixture
def computed(monkeypatch):
    """A list that grows by one grid with each computation of positions."""
    grids = []

    def counting(function, position):
        def counted(*arguments):
            grids.append(arguments[position])
            return function(*arguments)

        return counted

    monkeypatch.setattr(modeling_vit, "interpolate_positions", counting(interpolate_positions, 1))
    for module in (ViTRelativePositionTable, ViTRelativePositionMLP):
        monkeypatch.setattr(module, "compute", counting(module.compute, 1))
    return grids


def positions_of(model):
    return next(p for name, p in model.named_parameters() if "position" in name)


def fresh_output(model, grid=GRID):
    """Return the output of a new model with the same weights and an empty cache."""
    twin = type(model)(model.config).to(model.dtype).eval()
    twin.load_state_dict(model.state_dict())
    return run(twin, grid)


@every_relative_kind
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_relative_biases_are_computed_once_per_size(kind, context, computed):
    model = make_model(**KINDS[kind])
    with context():
        first = model(make_images(GRID)).last_hidden_state
        assert computed == [GRID] * MODULES[kind]
        assert torch.equal(model(make_images(GRID)).last_hidden_state, first)
        assert computed == [GRID] * MODULES[kind]
        model(make_images((5, 3)))
        assert computed == [GRID] * MODULES[kind] + [(5, 3)] * MODULES[kind]


def test_inference_mode_and_gradients_do_not_disturb_each_other():
    for kind in KINDS.values():
        model = make_model(**kind)
        with torch.inference_mode():
            expected = model(make_images(GRID)).last_hidden_state.clone()
        output = model(make_images(GRID)).last_hidden_state
        torch.testing.assert_close(output.detach(), expected)
        output.sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(make_images(GRID)).last_hidden_state, expected)


@torch.no_grad()
def test_absolute_positions_are_computed_in_each_call(computed):
    model = make_model()
    run(model, GRID)
    run(model, GRID)
    assert computed == [GRID] * 2


@every_relative_kind
def test_gradients_flow_through_frozen_biases(kind):
    model = make_model(**KINDS[kind]).requires_grad_(False)
    images = make_images(GRID).requires_grad_()
    run(model, GRID)
    model(images).last_hidden_state.square().sum().backward()
    assert images.grad.any()


@every_relative_kind
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("view", [lambda bias: bias, lambda bias: bias.data, lambda bias: torch.from_numpy(bias.numpy())])
def test_a_hook_that_changes_the_bias_in_place_changes_one_call_only(kind, context, view):
    model = make_model(**KINDS[kind])
    with context():
        expected = run(model, GRID)
        module = next(module for module in model.modules() if isinstance(module, ViTRelativePosition))

        def change(module, arguments, bias):
            view(bias).add_(torch.linspace(0, 9, bias.shape[-1]))

        hook = module.register_forward_hook(change)
        assert not torch.equal(run(model, GRID), expected)
        hook.remove()
        assert torch.equal(run(model, GRID), expected)


@every_kind
@torch.no_grad()
def test_an_in_place_change_is_detected(kind, computed):
    model = make_model(**KINDS[kind])
    before = run(model, GRID)
    for name, parameter in model.named_parameters():
        if "position" in name:
            parameter.mul_(1.5)
    computed.clear()
    after = run(model, GRID)
    assert computed == [GRID] * MODULES[kind]
    assert not torch.allclose(after, before)
    assert torch.equal(after, fresh_output(model))


def assign_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def load_other_weights(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def assign_other_weights(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def load_into_reused_memory(model):
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(model.parameters()) * 1.5, model.parameters())


def round_trip_through_bfloat16(model):
    model.bfloat16().float()


def lerp_the_state_dict(model):
    """How timm's ModelEmaV3 and torch's AveragedModel follow a student."""
    torch._foreach_lerp_(list(model.state_dict().values()), [value + 1 for value in model.state_dict().values()], 0.5)


def write_through_data(model):
    """How DINO's loop moves its teacher: no version counter sees it."""
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def write_in_inference_mode(model):
    with torch.inference_mode():
        write_through_data(model)


def step_of_fused_adamw(model):
    """The default optimizer of transformers' Trainer, which raises no version counter either."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


CHANGES = [
    assign_data,
    write_through_data,
    write_in_inference_mode,
    step_of_fused_adamw,
    load_other_weights,
    assign_other_weights,
    load_into_reused_memory,
    round_trip_through_bfloat16,
    lerp_the_state_dict,
    ViTModel.bfloat16,
    ViTModel.double,
]


@pytest.mark.parametrize("change", CHANGES)
@every_kind
@torch.no_grad()
def test_other_weights_are_detected(kind, change):
    model = make_model(**KINDS[kind])
    before = run(model, GRID)
    change(model)
    after = run(model, GRID)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh_output(model))


@every_kind
def test_nothing_is_kept_while_gradients_are_needed(kind, computed):
    model = make_model(**KINDS[kind])
    for _ in range(2):
        model(make_images(GRID)).last_hidden_state.square().sum().backward()
    assert computed == [GRID] * MODULES[kind] * 2
    assert positions_of(model).grad.any()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw_fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),  # the default of transformers' Trainer
}


@pytest.mark.parametrize("training_grid", [GRID, (4, 6)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_kind
def test_evaluation_after_training_sees_the_trained_positions(kind, optimizer, training_grid):
    torch.manual_seed(0)
    model = make_model(**KINDS[kind])
    step = OPTIMIZERS[optimizer](model.parameters())
    outputs = [run(model, GRID)]
    for _ in range(2):
        model.train()
        for _ in range(2):
            step.zero_grad()
            model(make_images(training_grid)).last_hidden_state[..., :3].square().sum().backward()
            step.step()
        model.eval()
        outputs.append(run(model, GRID))
        assert torch.equal(outputs[-1], fresh_output(model))
        assert not torch.allclose(outputs[-1], outputs[-2])


@every_kind
def test_training_without_a_change_of_mode_is_detected_too(kind):
    torch.manual_seed(0)
    model = make_model(**KINDS[kind])
    step = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    run(model, GRID)
    model(make_images((4, 6))).last_hidden_state[..., :3].square().sum().backward()
    step.step()
    assert torch.equal(run(model, GRID), fresh_output(model))


@every_kind
@torch.no_grad()
def test_a_teacher_that_follows_by_data_is_not_stale(kind):
    """DINO's own loop writes to `.data`, which no version counter sees, on a teacher that is in training mode."""
    teacher = make_model(**KINDS[kind]).train()
    run(teacher, GRID)
    for parameter in teacher.parameters():
        parameter.data.mul_(0.5).add_(torch.randn_like(parameter))
    fresh = ViTModel(teacher.config).train()
    fresh.load_state_dict(teacher.state_dict())
    torch.manual_seed(0)  # for the dropout in the relative MLP
    output = run(teacher, GRID)
    torch.manual_seed(0)
    assert torch.equal(output, run(fresh, GRID))


@torch.no_grad()
def test_autocast_has_its_own_positions():
    model = make_model(**KINDS["mlp"])
    expected = run(model, GRID)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            under_autocast = run(model, GRID)
            assert torch.equal(under_autocast, fresh_output(model))
    assert torch.equal(run(model, GRID), expected)


@torch.no_grad()
def test_two_sizes_in_turn():
    for kind in KINDS.values():
        model = make_model(**kind)
        for grid in ((3, 5), (5, 3), (3, 5), (4, 6), (3, 5), (2, 2)):
            assert torch.equal(run(model, grid), fresh_output(model, grid))


@every_relative_kind
def test_copies_of_a_model_start_without_a_bias(kind, computed):
    model = make_model(**KINDS[kind])
    run(model, GRID)
    others = [make_model(**KINDS[kind]), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # noqa: S301
    for other in others:
        computed.clear()
        run(other, GRID)
        assert computed == [GRID] * MODULES[kind]
    computed.clear()
    run(model, GRID)
    assert not computed


@torch.no_grad()
def test_threads_that_share_a_model_get_each_their_own_size():
    """A server may run one model in several threads. Here another call cuts in after each bytecode instruction of a call in turn."""

    class GridItself(ViTRelativePosition):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def compute(self, grid):
            return torch.tensor(grid)

    module = GridItself().eval()

    def get(grid):
        return module(grid).tolist()

    def cut_in_after(number):
        """Makes the trace function, which counts the instructions of `ViTRelativePosition.forward`."""
        instructions = itertools.count()

        def trace(frame, event, argument):
            if frame.f_code is ViTRelativePosition.forward.__code__:
                frame.f_trace_opcodes = True
                if event == "opcode" and next(instructions) == number:
                    get((5, 3))
            return trace

        return trace, instructions

    before = sys.gettrace()
    for known in ((3, 5), (5, 3)):  # what the first call finds
        for number in itertools.count():
            get(known)
            trace, instructions = cut_in_after(number)
            sys.settrace(trace)
            try:
                output = get((3, 5))
            finally:
                sys.settrace(before)
            assert output == [3, 5]
            assert get((3, 5)) == [3, 5]
            if next(instructions) <= number:  # the call was over before
                break
        assert number > 20


@torch.no_grad()
def test_a_bias_too_large_to_keep_is_computed_in_each_call(monkeypatch, computed):
    monkeypatch.setattr(modeling_vit, "MAX_KEPT_BIAS", 2 * 16 * 16)  # heads, tokens, tokens at a grid of 3 x 5
    model = make_model(**KINDS["table"])
    for grid, number in (((3, 5), 2), ((4, 6), 4)):
        computed.clear()
        run(model, grid)
        run(model, grid)
        assert computed == [grid] * number


@every_kind
def test_a_saved_model_holds_no_bias(kind):
    model = make_model(**KINDS[kind])
    keys = set(model.state_dict())
    run(model, GRID)
    assert set(model.state_dict()) == keys
    assert not list(model.buffers())
