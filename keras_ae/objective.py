"""A Keras model whose loss is the weighted sum of its named terms.

loss = sum over the terms of [ weight * mean over the batch of the term ] + sum of `self.losses`
"""

import inspect
import warnings

import keras
from keras import ops

from keras_ae import distributed, gpu
from keras_ae.inputs import check_range, check_shape, is_array, peek, rank_of, unit_range
from keras_ae.train_step import StepMixin

# Other columns of the history, which no term may be called.
TAKEN = ("loss", "kl_weight", "likelihood_scale", "epoch", "seconds", "learning_rate")


class InnerSteps:
    """The steps that `fit` makes between two calls of its callbacks: `compile(steps_per_execution=...)`.

    For all these steps together, Keras calls the callbacks, converts the logs to Python numbers and draws
    the progress bar once. On jax, a callback that uses the model also makes Keras write all variables back
    first. So `KLAnnealing` stores the KL weights of the next steps here, and does not use the model.

    Attributes:
        takes_kl_weights: whether the train function reads `kl_weights`; Keras' own does not.
        kl_weights: (steps,) float32, the value of `kl_weight` for each of the next steps; None to leave it
            unchanged. The steps reset it to None.
        losses: the running loss after each of the last steps, as tensors of the backend. They show which
            step broke a run.
    """

    def __init__(self):
        self.takes_kl_weights, self.kl_weights, self.losses = False, None, ()

    def take_kl_weights(self):
        """Return `kl_weights` and reset them to None."""
        kl_weights, self.kl_weights = self.kl_weights, None
        return kl_weights


class Objective(StepMixin, keras.Model):
    """Defines the loss, and adapts `compile`, `fit` and `evaluate` to autoencoders.

    A subclass names its `terms`, computes them in `loss_terms` from the result of `forward`, and may weight
    them in `term_weights`. Each term is trained, tracked, shown in the progress bar and kept in the history.

    Attributes:
        terms: names of the terms of the loss, in the order of `metrics_names`. (Keras sorts its logs by name.)
    """

    terms: tuple[str, ...] = ()
    _training = True  # for a `compute_loss` of a user's that does not pass `training` on

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "call" in vars(cls) and cls.__module__ != __name__:
            raise TypeError(
                f"{cls.__name__} overrides call, which is not asked in training: override "
                "forward(inputs, training, sample) instead, which everything goes through."
            )

    def __init__(self, **kwargs):
        if kwargs.get("activity_regularizer") is not None:
            raise ValueError(
                f"{self._an(capital=True)} takes no activity_regularizer: give it to a layer of an encoder or decoder "
                "of your own, or add a term to the loss."
            )
        # autocast=False: images and targets stay float32; the networks cast their inputs themselves.
        super().__init__(autocast=False, **kwargs)
        self.inner_steps = InnerSteps()
        self._check_names()
        for name in self.terms:
            setattr(self, f"{name}_tracker", keras.metrics.Mean(name=name))

    # For subclasses to override

    def forward(self, inputs, training=False, sample=False):
        """Compute all outputs of the model, as a dict. Training, evaluation and prediction all use it.

        Args:
            inputs: one batch of the x that `fit` takes.
            training: whether this is a training step.
            sample: whether to draw random variables; if False they take their means.

        Returns:
            {"latent": (N, D), "reconstruction": (N, H, W, C) in [0, 1], …}
        """
        raise NotImplementedError

    def loss_terms(self, target, outputs):
        """The terms of the loss of each image: {name: (N,)}, in pixel units or nats per image.

        Args:
            target: (N, H, W, C) float32 in [0, 1].
            outputs: the result of `forward`.
        """
        return {}

    def term_weights(self):
        """The weights of the terms: {name: scalar}; a term that is not named has weight 1."""
        return {}

    def on_terms(self, terms, sample_weight, training):
        """Called with the terms of a batch before they are weighted, to update state that depends on them.

        Args:
            terms: the result of `loss_terms`.
            sample_weight: (N,) or None.
            training: whether this is a training step.
        """

    # The loss

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=None):
        """Compute the scalar that a step minimises, and update the trackers of the terms.

        Args:
            x: inputs of a batch.
            y: images to reconstruct; None for the images in x.
            y_pred: the result of `forward` for x; if this is no dict, `forward` is called again.
            sample_weight: (N,) or (N, 1), how much each image counts.
            training: whether this is a training step; None for that of the step which calls it, else True.

        Raises:
            ValueError: the terms are not those that the class names, or have another shape.
        """
        training = self._training if training is None else training
        # A train step of Keras or of a user passes only the reconstruction.
        outputs = y_pred if isinstance(y_pred, dict) else self.outputs_of(x, training)
        target = self.target(x, y)
        if "reconstruction" not in outputs:
            raise ValueError(
                f"forward of {type(self).__name__} must return a dict with 'reconstruction', (N, H, W, C) in [0, 1]; "
                f"got {', '.join(outputs)}."
            )
        terms = self.loss_terms(target, outputs)
        self._check_terms(terms, target.shape[0])
        sample_weight = None if sample_weight is None else _rows_of(sample_weight)
        self.on_terms(terms, sample_weight, training)
        weights = self.term_weights()
        self._check_weights(weights)
        if sample_weight is not None:
            terms = {name: term * sample_weight for name, term in terms.items()}
        means = {name: ops.mean(terms[name]) for name in self.terms}
        self.track(
            {getattr(self, f"{name}_tracker"): mean for name, mean in means.items()},
            ops.shape(target)[0],
        )
        weighted = [weights[k] * mean if k in weights else mean for k, mean in means.items()]
        weighted += self.additional_losses()
        return sum(weighted[1:], weighted[0])

    def _compute_loss(self, x, y, y_pred, sample_weight, training=True):
        """Keras' own: calls a `compute_loss` of a user's that may lack `training`. Ours still knows of it there."""
        if self._compute_loss_has_training_arg:
            return self.compute_loss(x, y, y_pred, sample_weight, training=training)
        self._training = training
        try:
            return self.compute_loss(x, y, y_pred, sample_weight)
        finally:
            self._training = True

    def _check_names(self):
        for term in self.terms:
            if term in TAKEN or term.startswith("val_") or self.terms.count(term) > 1:
                raise ValueError(
                    f"{type(self).__name__} has a term {term!r}, which names something else in the history: call it "
                    "otherwise."
                )

    def _check_terms(self, terms, images):
        """Refuse terms of other names or shapes. `images` is the batch size; None if a trace leaves it open."""
        name = type(self).__name__
        if not isinstance(terms, dict):
            raise ValueError(
                f"loss_terms of {name} must return a dict {{name: (N,)}}; got a {type(terms).__name__}."
            )
        if terms.keys() != set(self.terms):
            raise ValueError(
                f"loss_terms of {name} returned {', '.join(terms) or 'nothing'}; its `terms` are "
                f"{', '.join(self.terms)}: the two must name the same."
            )
        for term, values in terms.items():
            shape = tuple(getattr(values, "shape", ()))
            if len(shape) != 1 or shape[0] not in (None, images):
                raise ValueError(f"The term {term!r} must be (N,), a number an image; got {shape}.")

    def _check_weights(self, weights):
        if not isinstance(weights, dict):
            raise ValueError(
                f"term_weights of {type(self).__name__} must return a dict {{name: scalar}}; got a "
                f"{type(weights).__name__}."
            )
        if odd := weights.keys() - set(self.terms):
            raise ValueError(
                f"term_weights of {type(self).__name__} has {min(odd)!r}, which is none of its terms."
            )
        for term, weight in weights.items():
            shape = tuple(getattr(weight, "shape", ()))
            if shape or weight is None:
                raise ValueError(
                    f"The weight of the term {term!r} must be a scalar; got {shape or None}."
                )

    def step_loss(self, data, training):
        """Compute the loss of a batch from `fit`, and update all trackers and metrics.

        Returns:
            (loss, logs), where `logs` is what `compute_metrics` returned; {} if that was nothing, or not called.
        """
        x, y, sample_weight = self.unpack(data)
        x = self.scaled(x)
        outputs = self.outputs_of(x, training)
        loss = self._compute_loss(x, y, outputs, sample_weight, training)
        if self._loss_tracker is not None:  # made by compile()
            self.track({self._loss_tracker: loss}, ops.shape(outputs["reconstruction"])[0])
        if self._compile_metrics is None and not self.overridden("compute_metrics"):
            return loss, {}
        reconstruction = outputs["reconstruction"]
        logs = self.compute_metrics(x, self.target(x, y), reconstruction, sample_weight)
        return loss, logs or {}

    def overridden(self, method):
        """Whether a user's subclass overrides a method of this class, by its name."""
        return getattr(type(self), method) is not getattr(Objective, method)

    @property
    def logs_more(self):
        """Whether a user's subclass may log more than its metrics."""
        return self.overridden("train_step") or self.overridden("compute_metrics")

    def outputs_of(self, x, training):
        """The result of `forward` in a step; latents are drawn, in training as in evaluation."""
        return self(x, training=training, sample=True, return_outputs=True)

    def call(self, inputs, training=False, sample=None, return_outputs=False):
        """Return the reconstruction, or with `return_outputs` all outputs of `forward`."""
        outputs = self.forward(
            inputs, training=training, sample=training if sample is None else sample
        )
        return outputs if return_outputs else outputs["reconstruction"]

    def target(self, x, y=None):
        """The images that a batch should be reconstructed as: (N, H, W, C) float32 in [0, 1]."""
        if y is None:
            return unit_range(self.images_of(x))
        check_shape(y, self.image_shape, f"Targets of {self._an()}")
        return unit_range(y)

    def images_of(self, x):
        """The images among the inputs."""
        return x

    def scaled(self, x):
        """The inputs with their images in [0, 1] already, as the network and the target both need them."""
        return x

    def unpack(self, data):
        """A batch of `fit` as (x, y, sample_weight)."""
        return keras.utils.unpack_x_y_sample_weight(data)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics of `compile(metrics=…)`, which get (target, reconstruction); return all logs."""
        if isinstance(y_pred, dict):
            y_pred = y_pred["reconstruction"]
        if sample_weight is not None:
            sample_weight = _rows_of(sample_weight)
        return super().compute_metrics(x, self.target(x, y), y_pred, sample_weight)

    # The levers of `keras_ae.fast` override these

    def noise(self, shape):
        """Standard normal noise of a shape, drawn with the model's `seed_generator`."""
        return distributed.normal(shape, self.seed_generator)

    def track(self, values, n):
        """Update running means, {tracker: value}; each value is a mean over n images."""
        for tracker, value in values.items():
            tracker.update_state(value, sample_weight=n)

    def additional_losses(self):
        """`self.losses`, from `add_loss` and from regularizers, each as a scalar."""
        return [ops.sum(loss) for loss in self.losses]

    # Keras' methods

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, **kwargs):
        """`keras.Model.compile`, without `loss` and `loss_weights`.

        Raises:
            ValueError: a loss or loss weights were given, or a metric has the name of a term.
        """
        if loss is not None:
            raise ValueError(
                f"The loss of {self._an()} is the sum of its terms: give reconstruction= to its "
                f"constructor in place of loss={loss!r} to compile, or override loss_terms."
            )
        if loss_weights is not None:
            raise ValueError("loss_weights are not used: override term_weights to weigh the terms.")
        for metric in keras.tree.flatten([kwargs.get("metrics"), kwargs.get("weighted_metrics")]):
            name = getattr(metric, "name", None) or getattr(metric, "__name__", None)
            if name in (*TAKEN, *self.terms):
                raise ValueError(
                    f"A metric called {name!r} would hide something else in the logs: call it otherwise."
                )
        super().compile(optimizer, **kwargs)

    def compile_from_config(self, config):
        """Compile as the saved model was. Keras' own method does this for no overridden `compile`, not even ours."""
        arguments = keras.saving.deserialize_keras_object(config)
        try:
            inspect.signature(self.compile).bind(**arguments)
        except TypeError:  # a user's, with other arguments
            super().compile_from_config(config)
            return
        self.compile(**arguments)
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        """`keras.Model.fit`, with the images themselves as targets, or with other targets.

        Args:
            x: images, or something that yields batches of them.
            y: images to reconstruct, with the shape of x, such as x without noise; None for x itself.
            sample_weight: (N,), how much each image counts.
            **kwargs: these and the other arguments are those of Keras.

        Raises:
            ValueError: the images have another shape or scale than the model needs.
        """
        if class_weight is not None:
            x, y = self._classes_as_y(x, y)
        x, y, sample_weight = self._checked(x, y, sample_weight)
        if validation_data is not None and isinstance(validation_data, (tuple, list)):
            validation_data = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
            validation_data = self._checked(*validation_data)
        elif validation_data is not None:
            validation_data = self._checked(validation_data)[0]
        self.inner_steps.kl_weights = None  # of a fit that was interrupted
        self._warn_of_ended_schedule()
        with gpu.repeatable():
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data,
                shuffle, class_weight, sample_weight, **kwargs,
            )  # fmt: skip

    def _warn_of_ended_schedule(self):
        optimizer = getattr(self, "optimizer", None)  # none before `compile`
        rate, done = (getattr(optimizer, x, None) for x in ("learning_rate", "iterations"))
        if rate is None or done is None:
            return
        if not ops.convert_to_numpy(rate) and ops.convert_to_numpy(done):
            warnings.warn(
                "The learning rate is 0, as where a schedule ended with an earlier fit: compile the model anew to train on.",
                stacklevel=4,
            )

    def evaluate(
        self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, **kwargs
    ):
        """`keras.Model.evaluate`, for the same inputs that `fit` takes."""
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked it already
            x, y, sample_weight = self._checked(x, y, sample_weight)
        with gpu.in_float32():
            return super().evaluate(x, y, batch_size, verbose, sample_weight, **kwargs)

    def predict(self, x, *args, **kwargs):
        """`keras.Model.predict`: returns the reconstructions, (N, H, W, C) float32 in [0, 1]."""
        x = self._checked(x, own_target=False)[0]
        with gpu.in_float32():
            return super().predict(x, *args, **kwargs)

    def predict_step(self, *arguments):
        """Keras' own, for a batch in any form that `fit` takes."""
        *state, data = arguments
        return super().predict_step(*state, (self.unpack(data)[0],))

    def _checked(self, x, y=None, sample_weight=None, own_target=True):
        """(x, y, sample_weight) for Keras. Raises ValueError if the model cannot take them.

        If x yields batches, only the first one is checked, and only if this does not use it up.
        """
        if not is_array(x) and not isinstance(x, (tuple, list)):
            batch, x = peek(x)
            if batch is not None:
                first, target, _ = self.unpack(batch)
                self._check_inputs(first, own_target and target is None)
                if target is not None and own_target:
                    self._check_target(target)
            return x, y, sample_weight
        if sample_weight is not None:
            _check_rows(sample_weight)
        if y is not None and not is_array(y):
            raise ValueError(f"y must be an array or a tensor; got a {type(y).__name__}.")
        if y is None and sample_weight is not None:  # Keras ignores sample_weight if y is None
            x, y = self._with_y(x)
        first, target, _ = self.unpack((x, y))
        self._check_inputs(first, own_target and target is None)
        if target is not None:
            self._check_target(target)
        return x, y, sample_weight

    def _check_inputs(self, x, own_target):
        images = self.images_of(x)
        if is_array(images):
            check_shape(images, self.image_shape, f"Images of {self._an()}")
            check_range(images, strict=own_target)

    def _check_target(self, y):
        if not is_array(y):
            return
        if len(y.shape) < 3:
            raise ValueError(
                f"y is what {self._an()} is to reconstruct, images {self.image_shape}; got "
                f"{tuple(y.shape)}. Leave labels out: fit(images), or dataset.map(lambda x, y: x)."
            )
        check_shape(y, self.image_shape, f"Targets of {self._an()}")
        check_range(y, "Targets")

    def _with_y(self, x):
        return x, x

    def _classes_as_y(self, x, y):
        raise ValueError(
            f"{self._an(capital=True)} has no classes to weigh: give sample_weight, a number an image."
        )

    def _an(self, capital=False):
        name = type(self).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        return f"{article.title() if capital else article} {name}"

    def _symbolic_build(self, iterator=None, data_batch=None):
        # Keras builds from the first batch; convert it from any form that `fit` takes.
        metrics = self._compile_metrics
        unbuilt = not all(layer.built for layer in self._flatten_layers())
        if data_batch is None and (unbuilt or metrics is not None and not metrics.built):
            for _, _, batch in iterator or ():
                data_batch = batch[0] if isinstance(batch, (list, tuple)) else next(batch)
                break
        if data_batch is not None:
            x, y, sample_weight = self.unpack(data_batch)
            if metrics is not None:
                y = self.target(self.scaled(x), y)
            data_batch = x, y, sample_weight
        super()._symbolic_build(iterator, data_batch)


def _rows_of(sample_weight):
    """Convert sample weights (N,) or (N, 1) to (N,) float32."""
    if rank_of(sample_weight) is not None:
        _check_rows(sample_weight)
    return ops.cast(ops.reshape(sample_weight, (-1,)), "float32")


def _check_rows(sample_weight):
    if not is_array(sample_weight):
        kind = type(sample_weight).__name__
        raise ValueError(f"sample_weight must be an array (N,), a number an image; got a {kind}.")
    shape = tuple(sample_weight.shape)
    if len(shape) != 1 and shape[1:] != (1,):
        raise ValueError(f"sample_weight must be (N,), a number an image; got {shape}.")
