"""As a module: everything that can be done to a layer of torch.nn does the same to Cello's."""

import copy
import io
import pickle

import pytest
import torch
from cases import CELLS, ENGINES, LAYERS, OPTIONS, F, H, P, assert_same, flatten, grid, make_pair
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import cello

X = torch.linspace(-1, 1, 5 * 2 * F, dtype=torch.float64).reshape(5, 2, F)


def pair(name, **options):
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64} | options
    return make_pair(name, F, H, **options)


def gradients(layer, x=X):
    total = sum(tensor.sum() for tensor in flatten(layer(x)))
    return torch.autograd.grad(total, [p for p in layer.parameters() if p.requires_grad])


def assert_equal_modules(ours, theirs):
    assert_same(ours(X), theirs(X))
    assert_same(gradients(ours), gradients(theirs))


# Construction

POSITIONAL = {
    "RNN": (F, H, 2, "relu", False, True, 0.25, True),
    "LSTM": (F, H, 2, False, True, 0.25, True, P),
    "GRU": (F, H, 2, False, True, 0.25, True),
    "RNNCell": (F, H, False, "relu"),
    "LSTMCell": (F, H, False),
    "GRUCell": (F, H, False),
}
ATTRIBUTES = [
    *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
    *("bidirectional", "proj_size", "nonlinearity", "training"),
]


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_arguments_and_attributes(name, count):
    arguments = POSITIONAL[name][:count]
    ours, theirs = (getattr(namespace, name)(*arguments) for namespace in (cello.nn, nn))
    for attribute in ATTRIBUTES:
        given, expected = (getattr(module, attribute, "absent") for module in (ours, theirs))
        assert given == expected, attribute
        assert type(given) is type(expected), attribute


@pytest.mark.parametrize("name", CELLS)
def test_device_and_dtype_are_the_last_positional_arguments_of_a_cell(name):
    arguments = (F, H, True, "tanh") if name == "RNNCell" else (F, H, True)
    cell = getattr(cello.nn, name)(*arguments, "meta", torch.float16)
    assert (cell.weight_ih.device.type, cell.weight_ih.dtype) == ("meta", torch.float16)


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_torch_cells(name):
    assert issubclass(getattr(cello.nn, name), getattr(nn, name))


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", grid(kind=tuple(OPTIONS), num_layers=(1, 3), bidirectional=(False, True), bias=(False, True)),
    ids=str,
)  # fmt: skip
def test_parameters_are_drawn_from_the_same_stream(case, dtype):
    ours, theirs, after = case.make(cello.nn, dtype), case.make(nn, dtype), []
    for namespace in (cello.nn, nn):
        case.make(namespace, dtype)
        after.append(torch.rand(1))
    assert torch.equal(*after)
    expected = dict(theirs.named_parameters())
    assert list(dict(ours.named_parameters())) == list(expected)
    for key, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[key]), key
        assert parameter.dtype == expected[key].dtype
        assert parameter.requires_grad
    for module in (ours, theirs):
        torch.manual_seed(7)
        module.reset_parameters()
    assert_same(list(ours.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_parameters_of_cells_are_drawn_from_the_same_stream(name, bias):
    torch.manual_seed(0)
    ours = getattr(cello.nn, name)(F, H, bias)
    torch.manual_seed(0)
    theirs = getattr(nn, name)(F, H, bias)
    assert_same(list(ours.state_dict().values()), list(theirs.state_dict().values()))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_all_weights_and_flat_weights(kind, bias):
    options = OPTIONS[kind] | {"bias": bias}
    ours, theirs = pair(kind.split("-")[0], **options)
    names = {id(p): n for n, p in ours.named_parameters()}
    expected = {id(p): n for n, p in theirs.named_parameters()}
    assert [[names[id(w)] for w in row] for row in ours.all_weights] == [
        [expected[id(w)] for w in row] for row in theirs.all_weights
    ]
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert [names[id(w)] for w in ours._flat_weights] == list(ours._flat_weights_names)
    assert ours.flatten_parameters() is None
    assert_equal_modules(ours, theirs)


REPRS = [
    *({}, {"num_layers": 2}, {"bias": False}, {"batch_first": True}, {"bidirectional": True}),
    {"num_layers": 2, "dropout": 0.25},
    {"num_layers": 2, "dropout": 1},
    {"num_layers": 3, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True},
]


@pytest.mark.parametrize("options", REPRS, ids=str)
@pytest.mark.parametrize("kind", OPTIONS)
def test_repr_of_layers(kind, options):
    ours, theirs = make_pair(kind.split("-")[0], F, H, **(options | OPTIONS[kind]))
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()


@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_repr_of_cells(name, options):
    assert repr(getattr(cello.nn, name)(F, H, **options)) == repr(
        getattr(nn, name)(F, H, **options)
    )


def test_repr_of_options_beyond_torch():
    layer = cello.nn.LSTM(
        3, [4, 5], 2, bidirectional=True, merge="sum", learn_initial_state=True,
        activation="relu", gate_activation=cello.PiecewiseLinear.hard_sigmoid(), forget_bias=1.0,
    )  # fmt: skip
    assert layer.extra_repr() == (
        "3, (4, 5), num_layers=2, bidirectional=True, merge='sum', learn_initial_state=True, "
        "activation=relu, gate_activation=PiecewiseLinear([-3, 3], [0, 1]), forget_bias=1.0"
    )
    assert cello.nn.GRU(3, 4, reverse=True).extra_repr() == "3, 4, reverse=True"
    assert cello.nn.RNN(3, 4, nonlinearity="relu").extra_repr() == "3, 4"
    assert cello.nn.RNN(3, 4, activation="elu").extra_repr() == "3, 4, activation=elu"
    assert repr(cello.nn.RNNCell(3, 4, activation="elu")) == "RNNCell(3, 4, activation=elu)"
    assert repr(cello.nn.GRUCell(3, 4, gate_activation="hardsigmoid")) == (
        "GRUCell(3, 4, gate_activation=hardsigmoid)"
    )


# State dicts, copies and files


@pytest.mark.parametrize("kind", OPTIONS)
def test_state_dicts_go_both_ways(kind):
    torch.manual_seed(0)
    name, options = kind.split("-")[0], {"num_layers": 2, "bidirectional": True} | OPTIONS[kind]
    ours = getattr(cello.nn, name)(F, H, **options).double()
    theirs = getattr(nn, name)(F, H, **options).double()
    for source, target in [(ours, theirs), (theirs, ours)]:
        nn.init.normal_(source.weight_ih_l1_reverse)
        state = source.state_dict()
        assert target.load_state_dict(state, strict=True) == ([], [])
        assert_equal_modules(ours, theirs)
        assert target.load_state_dict(copy.deepcopy(state), strict=True, assign=True) == ([], [])
        assert_equal_modules(ours, theirs)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    smaller = getattr(nn, name)(F, H, 1, **OPTIONS[kind]).state_dict()
    with pytest.raises(RuntimeError, match="weight_ih_l1"):
        ours.load_state_dict(smaller)


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_file(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, through_pickle, through_file])
@pytest.mark.parametrize("kind", [*OPTIONS, *CELLS])
def test_copies_compute_the_same(kind, copier):
    name = kind.split("-")[0]
    options = {} if name in CELLS else {"num_layers": 2} | OPTIONS[kind]
    ours, theirs = make_pair(name, F, H, **options, dtype=torch.float64)
    x = X[0] if name in CELLS else X
    ours(x)  # a call leaves nothing behind that could not be copied
    other = copier(ours)
    assert_same(other(x), theirs(x))
    assert repr(other) == repr(ours)
    assert list(other.state_dict()) == list(theirs.state_dict())
    if copier is not copy.copy:
        next(other.parameters()).data.zero_()
        assert_same(ours(x), theirs(x))


def test_copies_keep_options_beyond_torch():
    layer = cello.nn.LSTM(
        F, [4, 5], 2, bidirectional=True, merge="mean", learn_initial_state=True,
        activation=cello.PiecewiseLinear.hard_tanh(), gate_activation="hardsigmoid", dtype=X.dtype,
    )  # fmt: skip
    for copier in (copy.deepcopy, through_pickle, through_file):
        assert_same(copier(layer)(X), layer(X))


def test_weights_only_files():
    ours, theirs = pair("LSTM")
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    nn.init.zeros_(ours.weight_hh_l0)
    ours.load_state_dict(torch.load(file, weights_only=True))
    assert_equal_modules(ours, theirs)


# Dtype, device, mode


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_to_another_dtype(name, dtype):
    ours, theirs = pair(name)
    ours.to(dtype), theirs.to(dtype)
    results = [layer(X.to(dtype)) for layer in (ours, theirs)]
    assert {tensor.dtype for tensor in flatten(results[0])} == {dtype}
    eps = torch.finfo(dtype).eps
    assert_same(*results, rtol=4 * eps, atol=4 * eps)
    assert_equal_modules(ours.double(), theirs.double())


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name):
    ours, theirs = (
        getattr(namespace, name)(F, H, 2, bidirectional=True, device="meta", dtype=X.dtype)
        for namespace in (cello.nn, nn)
    )
    shapes = [[tensor.shape for tensor in flatten(m(X.to("meta")))] for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for module in (ours, theirs):
        module.to_empty(device="cpu")
        torch.manual_seed(0)
        module.reset_parameters()
    assert_equal_modules(ours, theirs)
    with torch.device("meta"):
        assert getattr(cello.nn, name)(F, H).weight_ih_l0.is_meta


@pytest.mark.parametrize("name", LAYERS)
def test_default_dtype(name):
    torch.set_default_dtype(torch.float64)
    try:
        layer = getattr(cello.nn, name)(F, H)
        assert layer.weight_hh_l0.dtype == torch.float64
        assert layer(X)[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_no_grad_and_inference_mode(name):
    ours, theirs = pair(name)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = [layer(X) for layer in (ours, theirs)]
        assert_same(*results)
        assert not any(tensor.requires_grad for tensor in flatten(results[0]))
    assert_equal_modules(ours, theirs)


# Freezing and tying


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_has_no_graph(name, engine):
    layer = pair(name)[0].requires_grad_(False)
    with cello.engine(engine):
        assert not any(tensor.requires_grad for tensor in flatten(layer(X)))
        head = nn.Linear(2 * H, 1, dtype=X.dtype)
        head(layer(X)[0]).sum().backward()
    assert head.weight.grad is not None
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "bias_hh_l1_reverse", "weight_hh"])
@pytest.mark.parametrize("name", LAYERS)
def test_some_frozen_parameters(name, frozen, engine):
    ours, theirs = pair(name)
    x = X.clone().requires_grad_()
    for layer in (ours, theirs):
        for key, parameter in layer.named_parameters():
            parameter.requires_grad_(not key.startswith(frozen))
        with cello.engine(engine):
            layer(x)[0].sum().backward()
    grads = [[p.grad for p in layer.parameters()] for layer in (ours, theirs)]
    assert any(g is None for g in grads[0])
    for got, expected in zip(*grads, strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            assert_same(got, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_tied_within_a_layer_and_across_layers(name):
    results = []
    for namespace in (cello.nn, nn):
        torch.manual_seed(0)
        first = getattr(namespace, name)(F, H, 2, dtype=X.dtype)
        second = getattr(namespace, name)(F, H, 2, dtype=X.dtype)
        first.weight_hh_l1 = first.weight_hh_l0
        second.weight_ih_l0 = first.weight_ih_l0
        both = nn.ModuleList([first, second])
        assert len(list(both.parameters())) == 14
        total = first(X)[0].sum() + second(X)[0].sum()
        results.append([total, torch.autograd.grad(total, list(both.parameters()))])
        with torch.no_grad():  # a change of one is a change of both
            first.weight_hh_l0.mul_(0.5)
            assert torch.equal(first.weight_hh_l1, first.weight_hh_l0)
        single = first.to(torch.float32)(X.float())[0]
        assert first.weight_hh_l1 is first.weight_hh_l0
        results[-1].append(single)
    assert_same(*(result[:2] for result in results))
    assert_same(*(result[2] for result in results), rtol=1e-6, atol=1e-7)


def test_a_replaced_parameter_is_used():
    ours, theirs = pair("GRU")
    new = torch.zeros_like(ours.weight_ih_l0)
    ours.weight_ih_l0 = nn.Parameter(new)
    theirs.weight_ih_l0 = nn.Parameter(new.clone())
    assert_equal_modules(ours, theirs)
    ours.weight_hh_l0.data, theirs.weight_hh_l0.data = torch.ones(2, 3 * H, H, dtype=X.dtype)
    assert_equal_modules(ours, theirs)


# Parametrizations, pruning, hooks


def weight_norm(layer):
    parametrizations.weight_norm(layer, "weight_hh_l0")


def spectral_norm(layer):
    torch.manual_seed(0)
    # So many iterations that a further one changes nothing: layers differ in how often they ask.
    parametrizations.spectral_norm(layer, "weight_hh_l0", n_power_iterations=500)


def orthogonal(layer):
    torch.manual_seed(0)
    parametrizations.orthogonal(layer, "weight_hh_l0")


def old_weight_norm(layer):
    nn.utils.weight_norm(layer, "weight_hh_l0")
    nn.utils.weight_norm(layer, "weight_ih_l1_reverse", dim=None)


def old_spectral_norm(layer):
    torch.manual_seed(0)
    nn.utils.spectral_norm(layer, "weight_hh_l0")


def pruned(layer):
    prune.l1_unstructured(layer, "weight_hh_l0", amount=0.3)
    prune.ln_structured(layer, "weight_ih_l0_reverse", amount=0.5, n=2, dim=0)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change", [weight_norm, spectral_norm, orthogonal, old_weight_norm, old_spectral_norm, pruned]
)
@pytest.mark.parametrize("name", LAYERS)
def test_parametrized_weights(name, change, training):
    ours, theirs = pair(name)
    for layer in (ours, theirs):
        layer.train(training)
        change(layer)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_equal_modules(ours, theirs)
    for layer in (ours, theirs):  # what the optimizer changes shows at the next call
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer(X)[0].sum().backward()
        optimizer.step()
    assert_same(ours(X), theirs(X))
    ours.float(), theirs.float()
    assert_same(ours(X.float()), theirs(X.float()), rtol=1e-4, atol=1e-5)


def test_parametrizations_come_off_again():
    ours, theirs = pair("LSTM")
    for layer in (ours, theirs):
        parametrizations.weight_norm(layer, "weight_hh_l0")
        with parametrize.cached():
            layer(X)
        parametrize.remove_parametrizations(layer, "weight_hh_l0")
        pruned(layer)
        prune.remove(layer, "weight_hh_l0")
    assert isinstance(ours.weight_hh_l0, nn.Parameter)
    assert (ours.weight_hh_l0 == 0).sum() > 0
    assert_equal_modules(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, old_weight_norm, pruned])
def test_parametrized_layers_load_from_state_dicts(change):
    ours, theirs = pair("LSTM")
    change(ours), change(theirs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.5)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert_equal_modules(ours, theirs)


def test_hooks_see_the_call():
    layer, seen = cello.nn.LSTM(F, H, dtype=X.dtype), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True
    )
    layer.register_forward_hook(lambda module, args, result: (result[0] * 2, result[1]))
    layer.register_full_backward_hook(lambda module, *grads: seen.append("backward"))
    x = X.clone().requires_grad_()
    output, (h, _) = layer(x, lengths=[5, 5])
    assert torch.equal(output[-1], 2 * h[0])
    output.sum().backward()
    assert seen == ["before", ["lengths"], "backward"]


def test_hooks_on_parameters_see_the_gradient():
    layer, seen = cello.nn.GRU(F, H, dtype=X.dtype), []
    layer.weight_hh_l0.register_hook(lambda grad: seen.append(grad.shape))
    layer.weight_hh_l0.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.shape))
    layer(X)[0].sum().backward()
    assert seen == [(3 * H, H)] * 2


# Calls with other weights


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
def test_functional_call_and_transforms(name, engine):
    ours, theirs = pair(name)
    weights = {key: p.detach() * 0.5 for key, p in ours.named_parameters()}

    def loss(weights, layer):
        return torch.func.functional_call(layer, weights, (X,))[0].pow(2).sum()

    with cello.engine(engine):
        got = torch.func.grad_and_value(loss)(weights, ours)
        untouched = ours(X)
    expected = torch.func.grad_and_value(loss)(weights, theirs)
    assert_same(list(got[0].values()), list(expected[0].values()))
    assert_same(got[1], expected[1])
    assert_same(untouched, theirs(X))


SHORT, MANY = X[:3], torch.stack([X, X.flip(0), X * 2])
TRANSFORMS = {  # how the reference engine does it, and torch's layers, which know jacrev alone
    "jacrev": (lambda f: torch.func.jacrev(f)(SHORT), lambda f: torch.func.jacrev(f)(SHORT)),
    "jacfwd": (lambda f: torch.func.jacfwd(f)(SHORT), lambda f: torch.func.jacrev(f)(SHORT)),
    "jvp": (
        lambda f: torch.func.jvp(f, (SHORT,), (SHORT.flip(0),))[1],
        lambda f: torch.tensordot(torch.func.jacrev(f)(SHORT), SHORT.flip(0), dims=3),
    ),
    "hessian": (
        lambda f: torch.func.hessian(lambda x: f(x).sum())(SHORT),
        lambda f: torch.autograd.functional.hessian(lambda x: f(x).sum(), SHORT),
    ),
    "vmap": (lambda f: torch.func.vmap(f)(MANY), lambda f: torch.stack([f(x) for x in MANY])),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_transforms_of_the_input(name, transform):
    ours, theirs = pair(name)
    apply, expected = TRANSFORMS[transform]
    with cello.engine("reference"):
        got = apply(lambda x: ours(x)[0])
    assert_same(got, expected(lambda x: theirs(x)[0]))


@pytest.mark.parametrize("kind", OPTIONS)
def test_replicas_of_data_parallel(kind):
    """What nn.DataParallel does: a replica has plain tensors, of its device, for parameters."""
    layer = pair(kind.split("-")[0], **OPTIONS[kind])[0]
    replicas = [layer._replicate_for_data_parallel() for _ in range(2)]
    for number, replica in enumerate(replicas):
        for key, parameter in layer.named_parameters():
            setattr(replica, key, parameter * (number + 1))
    assert not list(replicas[0].parameters())
    assert_same(replicas[0](X), layer(X))
    twice = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
    assert_same(replicas[1](X), twice(X))
    replicas[0](X)[0].sum().backward()  # the gradient arrives at the original
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_data_parallel_without_devices_calls_the_layer(name):
    ours, theirs = pair(name)
    assert_same(nn.DataParallel(ours)(X), theirs(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_layer_that_is_traced_on_one_step_runs_on_others(name):
    layer = getattr(cello.nn, name)(3, 4)
    traced = torch.jit.trace(layer, (torch.randn(1, 2, 3),), check_trace=False)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(traced(x)[0], layer(x)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
def test_jit_trace(name, engine):
    """A trace holds for any batch; of the Python loop, for the number of steps it was made with."""
    ours, theirs = pair(name)
    with cello.engine(engine):
        traced = torch.jit.trace(ours, (X,))
    other = torch.cat([X.flip(0) * 0.5, X], dim=1)
    assert_same(traced(other), theirs(other))
    if engine == "reference":
        with pytest.raises(RuntimeError):
            traced(X[:4])
    else:
        assert_same(traced(X[:4]), theirs(X[:4]))
    traced(other)[0].sum().backward()
    theirs(other)[0].sum().backward()
    assert_same(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


class Counted(nn.Module):
    calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * 2


@pytest.mark.parametrize("name", LAYERS)
def test_a_parametrization_runs_once_per_call(name):
    layer, counted = pair(name)[0], Counted()
    parametrize.register_parametrization(layer, "weight_hh_l1", counted)
    counted.calls = 0
    layer(X)
    assert counted.calls == 1


# Inside other modules


@pytest.mark.parametrize("name", LAYERS)
def test_training_step_equals_torch(name):
    losses = []
    for namespace in (cello.nn, nn):
        torch.manual_seed(0)
        layer = getattr(namespace, name)(F, H, 2, dropout=0.5, dtype=X.dtype)
        head = nn.Linear(H, 1, dtype=X.dtype)
        model = nn.ModuleDict({"layer": layer, "head": head})
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        losses.append([])
        for _ in range(10):
            optimizer.zero_grad()
            loss = (head(layer(X)[0]) - X.sum(-1, keepdim=True)).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_arguments_are_not_changed():
    layer = pair("LSTM")[0]
    x, h, c = X.clone(), torch.ones(4, 2, H, dtype=X.dtype), torch.ones(4, 2, H, dtype=X.dtype)
    layer(x, (h, c))
    assert torch.equal(x, X)
    assert h.eq(1).all()
    assert c.eq(1).all()


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_that_are_not_contiguous(name):
    ours, theirs = pair(name)
    wide = torch.randn(2, 5, 2 * F, dtype=X.dtype)
    for x in (wide.transpose(0, 1)[..., ::2], X.flip(0)[:, :1].expand(-1, 2, -1), X[::2]):
        rows = torch.randn(2, 4, 2 * H, dtype=X.dtype).transpose(0, 1)[..., ::2]
        hx = (rows, rows.flip(0)) if name == "LSTM" else rows
        assert_same(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("name", LAYERS)
def test_state_may_be_passed_by_name_and_as_none(name):
    ours, theirs = pair(name)
    assert_same(ours(input=X, hx=None), theirs(input=X, hx=None))
    _, hx = ours(X)
    assert_same(ours(X, hx=hx), theirs(X, hx=hx))
    if name == "LSTM":
        assert_same(ours(X, list(hx)), theirs(X, list(hx)))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (cello.nn.LSTM, "activation"),
        (cello.nn.GRU, "gate_activation"),
        (cello.nn.RNN, "merge"),
        (cello.nn.GRU, "reverse"),
        (cello.nn.LSTM, "learn_initial_state"),
        (cello.nn.LSTMCell, "activation"),
        (cello.nn.RNNCell, "activation"),
        (cello.nn.GRUCell, "gate_activation"),
    ],
)
def test_a_subclass_does_not_change_an_option_by_a_name_of_its_own(kind, name):
    """A subclass of torch's layer may have such an attribute, where it means nothing to torch."""

    class Mine(kind):
        def __init__(self):
            super().__init__(3, 4)
            self.num_directions = 1
            setattr(self, name, nn.ReLU())

    with pytest.raises(
        AttributeError, match=rf"Mine\.{name}: .* is an option of cello\.nn\.{kind.__name__}"
    ):
        Mine()
    setattr(kind(3, 4), name, getattr(kind(3, 4), name))  # of Cello's own it is meant


def test_what_subclasses_of_torchs_layers_call():
    x, bad = torch.zeros(5, 2, 3), (torch.zeros(4, 2, 4), torch.zeros(4, 3, 4))
    for name in ("LSTM", "GRU", "RNN"):
        ours, theirs = (getattr(lib, name)(3, 4, 2, bidirectional=True) for lib in (cello.nn, nn))
        assert ours._all_weights == theirs._all_weights
        assert ours.__constants__ == theirs.__constants__
        assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
        order = torch.tensor([1, 0])
        state = (bad[0], bad[0] + 1) if name == "LSTM" else bad[0]
        for layer in (ours, theirs):
            layer.check_forward_args(x, state, None)
            assert len(layer.permute_hidden(state, order)) == len(state)
            wrong = bad if name == "LSTM" else bad[1]
            with pytest.raises(RuntimeError, match=r"Expected hidden"):
                layer.check_forward_args(x, wrong, None)


def test_places_of_arguments_are_those_of_torch():
    for name in ("LSTM", "GRU"):
        given = (3, 4, 2, True, False, 0.0, False, 0, "cpu", torch.float64)
        ours, theirs = (getattr(lib, name)(*given) for lib in (cello.nn, nn))
        assert repr(ours) == repr(theirs)
        assert ours.weight_ih_l0.dtype == torch.float64
    given = (3, 4, 2, "relu", True, False, 0.0, True, 0, "cpu", torch.float64)
    assert repr(cello.nn.RNN(*given)) == repr(nn.RNN(*given))
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        cello.nn.GRU(3, 4, 1, True, False, 0.0, False, 2)


def test_layers_and_cells_are_single_nodes_for_torch_fx():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.cell = cello.nn.GRU(3, 4), cello.nn.LSTMCell(4, 5)
            self.own = cello.Recurrent(nn.RNNCell(3, 4))

        def forward(self, x):
            output, _ = self.layer(x, None)
            own, _ = self.own(x)
            return self.cell(output[-1] + own[-1])[0]

    model, x = Model(), torch.randn(6, 2, 3)
    expected = model(x)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == [
        "layer",
        "own",
        "cell",
    ]
    torch.testing.assert_close(traced(x), expected)
