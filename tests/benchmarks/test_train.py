"""The trainer: microbatches, devices, results of runs and errors in settings."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import config as configs
from benchmarks import (
    data,
    demo,
    evaluation,
    inputs,
    models,
    optimizers,
    programs,
    report,
    train,
    training_step,
)
from benchmarks.config import Config

QUICK = Config(num_devices=1, progress=False, eval_statistics="recomputed")


HYPER = training_step.hyperparameters(QUICK, np.float32(0.5))


def build_step(config, num_devices, tx=None):
    """A step on digits, its initial state and its other arguments."""
    mesh = jax.make_mesh(
        (num_devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )
    model = models.build("mlp", 10, jnp.float32)
    tx = tx or optimizers.build("sgd", 0.5)
    state = training_step.init_state(model, tx, (8, 8, 1), jax.random.key(0))
    images, labels = data.load("digits", "train")
    indices = data.batch_indices(0, 0, config.batch_size, len(labels))
    replicated = state, (images, labels)
    arguments = (
        *jax.device_put(replicated, NamedSharding(mesh, P())),
        jax.device_put(
            indices.reshape(config.num_microbatches, -1), NamedSharding(mesh, P("data"))
        ),
    )
    step = training_step.make_step(config, model, lambda *_: tx, mesh)
    return jax.jit(step), model, (*arguments, HYPER)


@pytest.fixture(scope="module")
def one_device():
    config = dataclasses.replace(QUICK, batch_size=64, num_microbatches=4, augment=True)
    step, model, arguments = build_step(config, 1)
    return config, model, arguments, step(*arguments)


@pytest.mark.parametrize("num_devices", [2, 4])
def test_devices_share_microbatches_without_changing_the_result(
    one_device, num_devices
):
    config, _, _, expected = one_device
    step, _, arguments = build_step(config, num_devices)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        step(*arguments),
        expected,
    )


def test_loop_of_accelerators_gives_the_same_result(one_device, monkeypatch):
    config, _, _, expected = one_device
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    step, _, arguments = build_step(config, 1)
    assert "while" in step.lower(*arguments).as_text()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        step(*arguments),
        expected,
    )


@pytest.mark.parametrize("num_devices", [1, 4])
def test_value_fn_is_the_loss_of_the_mini_batch(one_device, num_devices):
    def update(updates, state, params=None, *, value, grad, value_fn, **extra_args):
        slope = jax.grad(value_fn)(params)
        curvature = jax.jvp(jax.grad(value_fn), (params,), (grad,))[1]
        return updates, (value_fn(params), value, slope, grad, curvature)

    def init(params):
        zero = jnp.zeros(())
        return zero, zero, params, params, params

    config = one_device[0]
    reporter = optax.GradientTransformationExtraArgs(init, update)
    step, _, arguments = build_step(config, num_devices, reporter)
    new, _ = step(*arguments)
    value_of, value, slope, grad, curvature = jax.device_get(new.opt_state)
    np.testing.assert_allclose(value_of, value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, grad
    )
    # The curvature against the derivative of the gradient that the step accumulates.
    state = arguments[0]

    def gradient(params):
        return step(state._replace(params=params), *arguments[1:])[0].opt_state[3]

    _, derivative = jax.jvp(gradient, (state.params,), (grad,))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        derivative,
        curvature,
    )


def test_step_averages_over_microbatches(one_device):
    config, model, arguments, (new, scalars) = one_device
    state, (images, labels), indices, _ = arguments
    key = inputs.step_keys(config, 0, 0).crops
    crops = data.draw_crops(key, 64, images.shape[1])
    losses, accuracies, gradients, statistics = [], [], [], []

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def value_and_grad(params, cut, own_labels):
        logits, changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            data.standardize(cut, jnp.float32),
            train=True,
            mutable=["batch_stats"],
        )
        own = jnp.take_along_axis(logits, own_labels[:, None], 1)[:, 0]
        loss = jnp.mean(jax.nn.logsumexp(logits, 1) - own)
        squares = [
            jnp.sum(leaf**2)
            for name, layer in params.items()
            if name.startswith("Dense")
            for leaf in layer.values()
        ]
        right = jnp.mean(jnp.argmax(logits, 1) == own_labels)
        return loss + 1e-4 * sum(squares), (right, changed["batch_stats"])

    for i in range(4):
        part = slice(16 * i, 16 * (i + 1))
        cut = data.take_crops(
            images, indices[i], data.Crops(crops.offsets[part], crops.flips[part])
        )
        (loss, (right, stats)), grads = value_and_grad(
            state.params, cut, labels[indices[i]]
        )
        losses.append(loss)
        accuracies.append(right)
        gradients.append(grads)
        statistics.append(stats)

    def mean(*parts):
        return sum(parts) / 4

    def close(a, b):
        return np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

    grads = jax.tree.map(mean, *gradients)
    params = jax.tree.map(lambda w, g: w - 0.5 * g, state.params, grads)
    close(scalars["loss"], mean(*losses))
    close(scalars["accuracy"], mean(*accuracies))
    jax.tree.map(close, new.params, params)
    jax.tree.map(close, new.batch_stats, jax.tree.map(mean, *statistics))
    # Averaged weights: decay (1 + 0) / (10 + 0) at the first step.
    average = jax.tree.map(lambda w0, w1: 0.1 * w0 + 0.9 * w1, state.params, params)
    jax.tree.map(close, new.average, average)


def test_recomputed_statistics_are_those_of_the_images():
    model = models.build("mlp", 10, jnp.float32)
    images = jnp.asarray(data.load("digits", "train").images[:100])
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=True)
    params, old = variables["params"], variables["batch_stats"]
    new = evaluation.recompute_statistics(QUICK, model, params, old, images)
    flat = data.standardize(images, jnp.float32).reshape(100, -1)
    hidden = np.asarray(flat @ params["Dense_0"]["kernel"])
    first = new["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["var"], hidden.var(0), rtol=1e-3, atol=1e-5)


def test_evaluation_counts_every_image_once():
    config = dataclasses.replace(QUICK, num_validation=45)
    _, split = data.hold_out(data.load("digits", "train"), 45)
    model = models.build("mlp", 10, jnp.float32)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=True)
    batches = list(inputs.open_source(config).evaluation_batches(7))
    assert {labels.shape for _, labels in batches} == {(7,)}
    result = evaluation.evaluate(
        functools.partial(evaluation.evaluate_batch, config, model),
        variables["params"],
        variables["batch_stats"],
        batches,
    )
    images = data.standardize(jnp.asarray(split.images), jnp.float32)
    logits = model.apply(variables, images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    accuracy = np.mean(np.argmax(logits, 1) == split.labels)
    np.testing.assert_allclose(result["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(result["accuracy"], accuracy, rtol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_learns(name):
    train_set, validation_set = data.hold_out(data.load("digits", "train"), 300)
    of_adam = (name for name in optimizers.OPTIMIZERS if "adam" in name)
    rates = {**dict.fromkeys(of_adam, 0.01), "lamb": 0.03, "lars": 10.0}
    rate = rates.get(name, 0.3)
    config = dataclasses.replace(
        QUICK, optimizer=name, batch_size=379, num_epochs=5, schedule="cosine"
    )
    runs = demo.make_runs(config, train_set)
    result = runs([rate, 0.0], [0, 0], validation_set)
    assert result["train_loss"][0, -1] < 0.6 * result["train_loss"][0, 0]
    assert result["accuracy"][0] > 0.7
    # Without steps there is nothing to learn from.
    assert result["accuracy"][1] < 0.5


def test_bad_arguments_leave_the_last_results(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    results.write_text("{}\n")
    arguments = ["demo", "--batch-sizes", "64", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        demo.main()
    assert "batch_size must be positive and finite, got 0" in capsys.readouterr().err
    assert results.read_text() == "{}\n"


def test_network_without_statistics_is_trained_and_resumed(tmp_path):
    config = dataclasses.replace(
        QUICK,
        model="vit",
        num_epochs=3,
        learning_rate=0.5,
        checkpoint_dir=str(tmp_path / "checkpoints"),
        out=tmp_path,
    )
    row = train.train(config)
    curve = report.load_curve(row, tmp_path)
    assert curve["loss"][-1] < 0.9 * curve["loss"][0]
    assert row["test_accuracy"] > 0.2
    again = train.train(config)  # from the checkpoint of its end
    assert again["test_loss"] == row["test_loss"]


def test_run_leaves_row_and_curve(tmp_path, monkeypatch):
    # The test set belongs to the final evaluation of runs without a validation set.
    read = []
    load = data.load
    monkeypatch.setattr(data, "load", lambda *a: read.append(a[1]) or load(*a))
    config = dataclasses.replace(
        QUICK,
        optimizer="nlcg_fr_step",
        batch_size=474,
        num_microbatches=2,
        num_validation=15,
        num_epochs=4,
        log_every=5,
        out=tmp_path,
    )
    row = train.train(config)
    assert read == ["train"]
    (stored,) = report.load(tmp_path / "results.jsonl")
    assert stored["status"] == row["status"] == "finished"
    assert stored["validation_accuracy"] == row["validation_accuracy"] > 0.5
    assert "test_accuracy" not in row
    assert row["num_steps"] == 12
    assert stored["config"]["optimizer"] == "nlcg_fr_step"
    assert stored["versions"]["jax"] == jax.__version__
    assert stored["learning_rate"] == pytest.approx(0.1 * 474 / 128)
    curve = report.load_curve(row, tmp_path)
    assert curve["step"].tolist() == list(range(12))
    assert curve["loss"][-1] < curve["loss"][0]
    assert curve["loss"][-1] == row["train_loss"]
    assert curve["beta"][0] == 0
    assert np.all((curve["scale"] > 0) & (curve["scale"] <= 1))
    # The same config is the same run.
    again = train.train(dataclasses.replace(config, num_validation=15))
    assert again["train_loss"] == row["train_loss"]


@pytest.mark.parametrize(
    "look", [{"log_every": 1}, {"log_every": 3}, {"checkpoint_every": 2}]
)
def test_when_a_run_is_looked_at_does_not_matter(tmp_path, monkeypatch, look):
    """One mini-batch of each epoch is bad: SGD is lost by it, NLCG leaves it out."""
    images, labels = data.load("digits", "train")
    spoilt = images.copy().astype(np.float32)
    spoilt[0] = np.nan
    load = data.load
    monkeypatch.setattr(
        data,
        "load",
        lambda *a: data.Split(spoilt, labels) if a[1] == "train" else load(*a),
    )
    for optimizer in ("nlcg", "sgd"):
        config = dataclasses.replace(
            QUICK,
            optimizer=optimizer,
            learning_rate=0.1,
            batch_size=239,
            num_epochs=6,
            log_every=100,
            out=tmp_path,
        )
        expected = train.train(config)
        ends = {"nlcg": "finished", "sgd": "diverged"}
        assert expected["status"] == ends[optimizer]
        if "checkpoint_every" in look:
            look = look | {"checkpoint_dir": str(tmp_path / optimizer)}
        row = train.train(dataclasses.replace(config, **look))
        for name in ("status", "num_steps", "train_loss", "gradient_equivalents"):
            assert row[name] == expected[name], name


def test_a_run_whose_penalty_overflows_has_diverged(tmp_path):
    """NLCG skips all of its steps, so that the cross-entropy stays what it is."""
    config = dataclasses.replace(QUICK, optimizer="nlcg", l2=3e38, out=tmp_path)
    row = train.train(dataclasses.replace(config, batch_size=379, num_epochs=5))
    assert (row["status"], row["num_steps"]) == ("diverged", train.JUDGED_OVER)
    assert math.isfinite(report.load_curve(row, tmp_path)["cross_entropy"][-1])


def test_diverged_run_ends_with_message_and_row(tmp_path, capsys):
    config = dataclasses.replace(
        QUICK,
        optimizer="sgd",
        learning_rate=1e12,
        schedule="constant",
        batch_size=479,
        log_every=4,
        out=tmp_path,
    )
    train.train(config)
    assert "diverged, the loss is nan" in capsys.readouterr().out
    (row,) = report.load(tmp_path / "results.jsonl")
    assert row["status"] == "diverged"
    assert row["train_loss"] == "nan"
    assert row["num_steps"] < 90
    assert math.isnan(report.load_curve(row, tmp_path)["loss"][-1])
    assert "diverged" in report.table([row])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; known: nlcg, "),
        ({"model": "vgg"}, "unknown model"),
        ({"dataset": "mnist"}, "unknown dataset"),
        ({"schedule": "step"}, "unknown schedule"),
        ({"batch_size": 100, "num_microbatches": 3}, "not divisible"),
        ({"num_microbatches": 1, "num_devices": 2}, "over 2 devices"),
        ({"num_devices": 9}, r"in \[1, 8\] on this machine, got 9"),
        ({"batch_size": 0}, "batch_size must be positive and finite, got 0"),
        (
            {"learning_rate": -1.0},
            "learning_rate must not be negative, nor infinite, got -1",
        ),
        ({"l2": -1.0}, "l2 must not be negative"),
        ({"l2": math.nan}, "l2 must not be negative, nor infinite, got nan"),
        ({"num_epochs": math.inf}, "num_epochs must be positive and finite, got inf"),
        ({"seed": 2**31}, r"seed must be below 2\^31, got 2147483648"),
        ({"label_smoothing": 1.0}, r"in \[0, 1\), got 1"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1"),
        ({"give_up_at": -0.1}, r"give_up_at must be in \[0, 1\), got -0\.1"),
        (
            {"optimizer": "sgd", "optimizer_setting": 0.9},
            "optimizer_setting is for .*; sgd has none, got 0.9",
        ),
        ({"eval_statistics": "old"}, "'running' or 'recomputed', got 'old'"),
        ({"num_epochs": 0.01}, "less than one mini-batch"),
        ({"num_validation": 1437}, r"num_validation must be in \[0, 1436\]"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(dataclasses.replace(QUICK, out=tmp_path, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", configs.names())
def test_configs_state_their_command(name):
    config = configs.named(name)
    optimizers.build(config.optimizer, 0.1)
    module = __import__(f"benchmarks.configs.{name}", fromlist=["get_config"])
    assert f"python -m benchmarks.train --config {name}" in module.__doc__


def test_reference_protocol():
    config = configs.named("cifar100_resnet32")
    assert config.peak_learning_rate == pytest.approx(12.8)
    assert config.num_steps(50_000) == 610
    first = "cifar100_16x16_resnet8, cifar100_16x16_vit, cifar100_resnet32, digits"
    with pytest.raises(ValueError, match=f"known: {first}"):
        configs.named("imagenet")


def test_runs_that_differ_in_numbers_are_compiled_once(tmp_path):
    config = dataclasses.replace(
        QUICK, optimizer="momentum", batch_size=479, num_epochs=1, out=tmp_path
    )
    programs.compile_programs.cache_clear()
    losses = set()
    for changes in (
        {"learning_rate": 0.1, "optimizer_setting": 0.5},
        {"learning_rate": 0.2, "optimizer_setting": 0.5},
        {"learning_rate": 0.2, "optimizer_setting": 0.9},
        {"l2": 0.1, "optimizer_setting": 0.9},
        {"weight_decay": 0.1, "optimizer_setting": 0.9},
        {"label_smoothing": 0.1, "optimizer_setting": 0.9},
        {"warmup": 0.5, "optimizer_setting": 0.9},
        {"num_epochs": 2, "optimizer_setting": 0.9},
        {"seed": 1, "optimizer_setting": 0.9},
    ):
        losses.add(train.train(dataclasses.replace(config, **changes))["test_loss"])
    assert len(losses) == 9
    assert programs.compile_programs.cache_info().misses == 1


def test_no_setting_of_a_program_is_forgotten():
    """A field that `structure` left out would silently have its default."""
    others = {
        "dataset": "cifar10",
        "model": "resnet8",
        "image_size": 32,
        "optimizer": "nlcg",
        "optimizer_setting": 0.9,
        "augment": True,
        "batch_size": 64,
        "num_microbatches": 2,
        "ema_decay": 0.5,
    }
    default = programs.structure(Config())
    kept = [
        k for k, v in others.items() if programs.structure(Config(**{k: v})) != default
    ]
    # Read between the programs, or given to them beside the config.
    outside = {
        *("data_dir", "num_workers", "num_validation", "dtype", "schedule", "warmup"),
        *("num_devices", "refresh_every", "num_epochs", "eval_statistics"),
        *("give_up_at", "log_every", "checkpoint_dir", "checkpoint_every", "out"),
        *("tensorboard", "progress"),
    }
    numbers = {*training_step.Hyperparameters._fields} - {"optimizer_setting"}
    fields = [field.name for field in dataclasses.fields(Config)]
    assert sorted(fields) == sorted([*kept, *outside, *numbers])


@pytest.mark.parametrize("name", ["sgd", "nlcg", "adamw"])
def test_weight_decay_is_decoupled(name):
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    updates = []
    for decay in (0.0, 0.5):
        tx = optimizers.build(name, 0.1, weight_decay=decay)
        update, _ = tx.update(grads, tx.init(params), params, value=jnp.ones(()))
        updates.append(update)
    change = jax.tree.map(lambda a, b: b - a, *updates)
    np.testing.assert_allclose(change["kernel"], -0.1 * 0.5 * 2, rtol=1e-5)
    np.testing.assert_array_equal(change["bias"], 0)
