"""Loss, training step and evaluation step: pure functions, no jit, no I/O. Next in the data flow: `train.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int, Key

from frozen_jax.batch import PAD, SLOT, Batch
from frozen_jax.flow import scale_pixels, spread_times, weigh
from frozen_jax.models.frozen import FrozenModel, input_mask
from frozen_jax.state import Params, TrainState, merge


class LossOptions(NamedTuple):
    """Switches of the training loss; evaluation uses the defaults.

    Attributes:
        label_smoothing: share of the target that is spread evenly over the vocabulary.
        embedding_noise: deviation of Gaussian noise on the embeddings, relative to their RMS.
        lm_dropout: the language model's own dropout acts; off while it is frozen, where it would be noise alone.
        retrieval_weight: of the contrastive loss of texts and pictures; above 0 the model needs a retrieval head.
        retrieval_asks: rows that ask a question take part in it, too.
        condition_drop: share of the pictures that a generator is taught without their text.
    """

    label_smoothing: float = 0.0
    embedding_noise: float = 0.0
    lm_dropout: bool = False
    retrieval_weight: float = 0.0
    retrieval_asks: bool = False
    condition_drop: float = 0.0


class LossParts(NamedTuple):
    """Un-normalised loss of a batch; sums over examples, hosts and micro-batches stay exact.

    Attributes:
        loss_sum: nats, over the predicted words; of a generator the mean squared error of the velocity, over pictures.
        words: number of predicted words, or of pictures.
        correct_sum: words whose logit was the highest, or equal to it; 0 of a generator.
        retrieval_sum: contrastive loss in nats, times `words`, so that micro-batches are averaged like the words' loss.
    """

    loss_sum: Float[Array, ""]
    words: Float[Array, ""]
    correct_sum: Float[Array, ""]
    retrieval_sum: Float[Array, ""]


def gather_predictions(
    hidden: Float[Array, "B S D"], batch: Batch, *, slots: int
) -> tuple[Float[Array, "B S2 D"], Int[Array, "B S2"], Float[Array, "B S2"]]:
    """Picks the states that predict a word with loss, and those words: logits are computed there and nowhere else.

    The state at position s predicts the token at s + 1. Neither image slots nor the first token are predicted, and the
    first may be a slot, so a row of S tokens has at most S - max(slots, 1) predictions; they are packed to the left,
    because shapes must not depend on values.

        tokens     bos  SLOT SLOT a    red  eos  PAD
        loss_mask   0    0    0    1    1    1    0
        gathered   (state 2, a) (state 3, red) (state 4, eos) and two places without loss

    Args:
        slots: image slots in each row, I x P.
    """
    targets, mask = jnp.asarray(batch.tokens)[:, 1:], jnp.asarray(batch.loss_mask)[:, 1:]
    order = jnp.argsort(-mask, axis=1, stable=True)[:, : batch.tokens.shape[1] - max(slots, 1)]
    states = jnp.take_along_axis(hidden, order[:, :, None], axis=1)
    return states, jnp.take_along_axis(targets, order, axis=1), jnp.take_along_axis(mask, order, axis=1)


def loss_fn(
    params: Params,
    model: FrozenModel,
    batch: Batch,
    *,
    rng: Key[Array, ""] | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 (immutable)
) -> LossParts:
    """Next-word loss on the words that `loss_mask` marks, given everything before them.

    Args:
        params: the whole tree, {"lm": …, "vision": …, "prefix": …}.
        batch: as `batch.validate` accepts it.
        rng: turns dropout on (training); None for evaluation.
        options: training switches.

    Source: Tsimpoukelli et al., arXiv 2106.13884, section 3.1.
    """
    images = batch.images.shape[1]
    pooled = model.see_images(params, batch.images, rng=rng) if images else None
    prefixes = None if pooled is None else model.make_prefixes(params, pooled, rng=rng)
    embeddings = model.embed(params, batch.tokens, prefixes)
    present = input_mask(batch.tokens).astype(jnp.int32)
    segments = present if batch.segments is None else jnp.asarray(batch.segments)
    if options.embedding_noise and rng is not None:
        size = options.embedding_noise * jnp.sqrt(jnp.mean(jnp.square(embeddings)))
        embeddings += size * jax.random.normal(jax.random.fold_in(rng, 3), embeddings.shape, embeddings.dtype)
    hidden = model.run_lm(params, embeddings, segments, rng=rng if options.lm_dropout else None)
    states, targets, weights = gather_predictions(hidden, batch, slots=images * model.prefix_length)
    logits = model.logits(params, states).astype(jnp.float32)
    words = jnp.maximum(targets, 0)  # places without loss may hold SLOT or PAD
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words)
    if options.label_smoothing:
        even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        losses = (1 - options.label_smoothing) * losses + options.label_smoothing * even
    # Compared with the maximum, which the loss needs anyway: an argmax over the vocabulary is slow on a CPU.
    of_words = jnp.take_along_axis(logits, words[:, :, None], axis=-1)[:, :, 0]
    correct = (of_words >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    count, contrast = jnp.sum(weights), jnp.float32(0)
    if options.retrieval_weight and pooled is not None:
        lm_rng = rng if options.lm_dropout else None
        contrast = retrieval_loss(params, model, batch, pooled[:, 0], rng=lm_rng, asks=options.retrieval_asks)
    return LossParts(jnp.sum(losses * weights), count, jnp.sum(correct * weights), contrast * count)


def retrieval_loss(
    params: Params,
    model: FrozenModel,
    batch: Batch,
    pooled: Float[Array, "B E"],
    *,
    rng: Key[Array, ""] | None = None,
    asks: bool = False,
) -> Float32[Array, ""]:
    """Symmetric InfoNCE (nats) between the texts of a batch, read without their pictures, and the pictures.

    `[RET]` stands where a text's last token, normally the end-of-text token, stood. Texts that are equal word by word
    share their pictures: the target is spread evenly over them, since neither text nor picture can tell which of them
    was meant. Answered questions that fit several pictures of a batch have but their own for target; over many batches
    each of these is meant equally often, so that the loss is least where all of them are found alike.

        tokens     bos  SLOT SLOT a    red  eos  PAD
        read       PAD  bos  a    red  RET

    Args:
        pooled: the pictures' features, one of each row.
        rng: turns the language model's own dropout on.
        asks: rows whose first word is not predicted, answered questions, take part; else both sides lack them.

    Source: van den Oord et al., arXiv 1807.03748; Yang et al., arXiv 2204.03610 (several right ones).
    """
    assert model.retrieval is not None
    tokens = jnp.asarray(batch.tokens)
    is_word = (tokens != SLOT) & (tokens != PAD)
    order = jnp.argsort(is_word, axis=1, stable=True)[:, model.prefix_length :]  # padding to the left, words in order
    words, present = (jnp.take_along_axis(x, order, axis=1)[:, :-1] for x in (tokens, is_word))
    texts = model.map_texts(params, model.embed(params, words, None), present, rng=rng)
    pictures = model.map_images(params, pooled)
    head = {"params": params["retrieval"]}
    cosines = jnp.einsum("AW,BW->AB", texts, pictures, precision=jax.lax.Precision.HIGHEST)
    logits = cosines * cast(Array, model.retrieval.apply(head, method="scale"))
    first = is_word[:, 1:] & (tokens[:, :-1] == SLOT)
    counted = ((first | asks) & (jnp.asarray(batch.loss_mask)[:, 1:] == 1)).any(axis=1)
    both = counted[:, None] & counted[None, :]
    same = both & (words[:, None] == words[None, :]).all(axis=-1)
    targets = same / jnp.maximum(same.sum(axis=1, keepdims=True), 1)
    logits = jnp.where(both, logits, -1e9)
    losses = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    losses -= (targets * logits).sum(axis=1) + (targets * logits).sum(axis=0)
    return jnp.where(counted, losses, 0.0).sum() / 2 / jnp.maximum(counted.sum(), 1)


def class_loss(
    params: Params,
    model: FrozenModel,
    batch: Batch,
    *,
    rng: Key[Array, ""] | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 (immutable)
) -> LossParts:
    """Loss of the class that a fusion names for each picture with its text; rows without a class carry none.

    Args:
        params: the whole tree, {"lm": …, "vision": …, "fusion": …}.
        batch: with labels.
        rng: turns dropout on (training); None for evaluation.
        options: training switches.
    """
    assert batch.labels is not None
    labels = jnp.asarray(batch.labels)
    weights = jnp.max(jnp.asarray(batch.loss_mask), axis=1) * (labels >= 0)
    lm_rng = rng if options.lm_dropout else None
    _, logits = model.fuse(params, batch.images, batch.tokens, rng=rng, lm_rng=lm_rng)
    targets = jax.nn.one_hot(labels, logits.shape[1])  # zeros for none
    losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, options.label_smoothing))
    correct = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    return LossParts(jnp.sum(losses * weights), jnp.sum(weights), jnp.sum(correct * weights), jnp.float32(0))


def picture_loss(
    params: Params,
    model: FrozenModel,
    batch: Batch,
    *,
    rng: Key[Array, ""] | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 (immutable)
) -> LossParts:
    """Squared error of a generator's velocity between noise and the batch's pictures, given their texts.

    Args:
        params: the whole tree, {"lm": …, "generator": …}.
        batch: one picture and one text in each row; rows without a word that carries loss are filling.
        rng: of noise, times and dropped texts (training); None takes always the same noise and times and drops no
            text, so that evaluations can be compared.
        options: training switches.

    Source: Liu et al., arXiv 2209.03003, equation 1; see `flow.py`.
    """
    pictures = scale_pixels(jnp.asarray(batch.images)[:, 0])
    rows = pictures.shape[0]
    condition = model.condition(params, batch.tokens, rng=rng if options.lm_dropout else None)
    noise_rng, time_rng, drop_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
    weights = jnp.max(jnp.asarray(batch.loss_mask), axis=1)
    if rng is None:  # filling takes none: the first rows' times alone would be those of almost pure noise
        times = spread_times(jnp.cumsum(weights) - 0.5, count=jnp.maximum(jnp.sum(weights), 1))
    else:
        times = spread_times(jnp.arange(rows) + jax.random.uniform(time_rng), count=rows)
    if rng is not None and options.condition_drop:
        dropped = jax.random.bernoulli(drop_rng, options.condition_drop, (rows,))
        condition = jnp.where(dropped[:, None, None], model.no_text(params, rows), condition)
    noise = jax.random.normal(noise_rng, pictures.shape)
    share = times[:, None, None, None]
    named = model.denoise(params, share * pictures + (1 - share) * noise, times, condition)
    errors = weigh(times) * jnp.mean(jnp.square(named - pictures), axis=(1, 2, 3))
    return LossParts(jnp.sum(errors * weights), jnp.sum(weights), jnp.float32(0), jnp.float32(0))


def choose_loss(model: FrozenModel) -> Callable[..., LossParts]:
    """Returns what a model is trained by: the words of its texts, the classes of a fusion, a generator's pictures."""
    if model.fusion is not None:
        return class_loss
    return loss_fn if model.generator is None else picture_loss


TrainStep = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_train_step(
    model: FrozenModel,
    optimiser: optax.GradientTransformation,
    *,
    accumulate: int,
    options: LossOptions,
    skip_faults: bool = False,
) -> TrainStep:
    """Builds `step(state, frozen, batch, rng) -> (state, metrics)`; the caller jits it and donates `state`.

    The gradient is taken with respect to `state.trainable` alone: the frozen tree is an argument that is read, never
    returned, and has neither gradient nor optimiser state.

    Args:
        accumulate: micro-batches that the batch is cut into; gradients are summed and divided by all words once.
        options: training switches of the loss.
        skip_faults: the step takes a fifth argument, the largest loss that is no fault, and returns the state as it was
            where the loss is larger or where loss or gradient is not finite.
    """

    measure = choose_loss(model)

    def sum_loss(trainable: Params, frozen: Params, batch: Batch, rng: Any) -> tuple[Array, LossParts]:
        parts = measure(merge(trainable, frozen), model, batch, rng=rng, options=options)
        return parts.loss_sum + options.retrieval_weight * parts.retrieval_sum, parts

    gradient = jax.grad(sum_loss, has_aux=True)

    def step(
        state: TrainState, frozen: Params, batch: Batch, rng: Key[Array, ""], loss_limit: Array | float = jnp.inf
    ) -> tuple[TrainState, dict[str, Array]]:
        if accumulate == 1:
            grads, parts = gradient(state.trainable, frozen, batch, rng)
        else:
            # Every accumulate-th row: each device cuts its own rows, and none has to move.
            micro = jax.tree.map(
                lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )
            keys = jax.random.split(rng, accumulate)

            def add(total: Any, inputs: tuple[Batch, Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, gradient(state.trainable, frozen, *inputs)), None

            zeros = (
                jax.tree.map(jnp.zeros_like, state.trainable),
                LossParts(*[jnp.float32(0)] * len(LossParts._fields)),
            )
            (grads, parts), _ = jax.lax.scan(add, zeros, (micro, keys))
        count = jnp.maximum(parts.words, 1)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": parts.loss_sum / count,
            **({"token_accuracy": parts.correct_sum / count} if model.generator is None else {}),
            "grad_norm": optax.tree.norm(grads),
        }
        if options.retrieval_weight:
            metrics["retrieval_loss"] = parts.retrieval_sum / count
        after = TrainState(trainable, opt_state)
        if skip_faults:
            # Not below the limit either, if it is NaN.
            sound = (metrics["loss"] <= loss_limit) & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            after = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state)
        return after, metrics

    return step


def make_eval_step(model: FrozenModel) -> Callable[[Params, Params, Batch], tuple[LossParts, Float[Array, "B I P"]]]:
    """Builds `step(trainable, frozen, batch) -> (LossParts, norms)`, without dropout or training switches.

    The norms are the Euclidean lengths of the prefix vectors in the batch's slots; NaN where a row has fewer pictures,
    or no loss; none of a model without a prefix. The compiler merges their encoder with that of the loss.
    """

    def step(trainable: Params, frozen: Params, batch: Batch) -> tuple[LossParts, Float[Array, "B I P"]]:
        params = merge(trainable, frozen)
        return choose_loss(model)(params, model, batch), _measure_prefixes(params, model, batch)

    return step


def _measure_prefixes(params: Params, model: FrozenModel, batch: Batch) -> Float[Array, "B I P"]:
    rows, images = batch.images.shape[:2]
    if not images * model.prefix_length:
        return jnp.zeros((rows, images, 0))
    norms = jnp.linalg.norm(model.embed_images(params, batch.images).astype(jnp.float32), axis=-1)
    shown = jnp.sum(jnp.asarray(batch.tokens) == SLOT, axis=1) // model.prefix_length
    counted = (jnp.arange(images)[None] < shown[:, None]) & jnp.any(jnp.asarray(batch.loss_mask) > 0, axis=1)[:, None]
    return jnp.where(counted[:, :, None], norms, jnp.nan)
