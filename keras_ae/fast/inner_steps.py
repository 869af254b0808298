"""What callbacks and steps tell each other: between two calls of the callbacks lie one step or several."""


class InnerSteps:
    """The steps that `fit` makes between two calls of its callbacks: `compile(steps_per_execution=...)`.

    Keras calls the callbacks, makes Python numbers of the logs and draws the progress bar once for all
    of them. On jax, a callback that touches the model moreover has every variable written back first.
    So the callback that anneals lays the weights of the coming steps here, without touching the model.

    Attributes:
        takes_kl_weights: whether the train function reads `kl_weights`; Keras' own does not.
        kl_weights: (steps,) float32, what `kl_weight` is set to before each of the coming steps; None
            to leave it alone. Taken away by the steps.
        losses: the running loss after each of the last steps, as the backend's tensors: whoever looks
            for the step that broke a run finds it here.
    """

    def __init__(self):
        self.takes_kl_weights, self.kl_weights, self.losses = False, None, ()

    def take_kl_weights(self):
        """`kl_weights`, which are used once."""
        kl_weights, self.kl_weights = self.kl_weights, None
        return kl_weights
