"""A forward pass on jax that writes back only the variables that it changes."""

import jax
import keras

from keras_ae import fast


def predictor(network):
    """A function from the arrays of a batch (a list) to the outputs of a network.

    Keras' own function writes all variables back, although they do not change.
    """
    if (
        not fast.ON
        or network.run_eagerly
        or not network.jit_compile
        or keras.distribution.distribution()
        or keras.config.is_nnx_enabled()
    ):
        return network.predict_on_batch
    network.make_predict_function()  # Keras makes a new function if the network was changed
    kept = vars(network).get("_forward")
    if kept is None or kept[0] is not network.predict_function:

        @jax.jit
        def call(values, inputs):
            variables = network.variables
            with keras.StatelessScope(list(zip(variables, values))) as scope:
                before = [scope.get_current_value(v) for v in variables]
                outputs = network(inputs, training=False)
            after = [scope.get_current_value(v) for v in variables]
            changed = {i: new for i, new in enumerate(after) if new is not before[i]}
            return outputs, changed

        def forward(inputs):
            variables = network.variables
            outputs, changed = call([variable.value for variable in variables], inputs)
            for i, value in changed.items():
                variables[i].assign(value)
            return outputs

        network._forward = kept = (network.predict_function, forward)
    return kept[1]
