"""Batches gathered within tensorflow's graph."""

import keras
import numpy as np

from keras_ae import fast

RESIDENT_BYTES = 1 << 30  # of images that are worth a copy


def batches(feed):
    """What to give to `fit` for a `keras_ae.feed.Feed`: on tensorflow the same batches, gathered in the graph.

    Of a `PyDataset`, Keras has tensorflow fetch each batch from Python: 2.7 of 18 ms a step of the mlp.
    Here it fetches the order of the epoch. Coins for the pixels, images too many to copy, and
    batches that are split over devices are left to the feed.
    """
    if keras.backend.backend() != "tensorflow" or not fast.ON:
        return feed
    import tensorflow as tf

    if tf.distribute.has_strategy() or feed.binarize or feed.images.nbytes > RESIDENT_BYTES:
        return feed
    arrays = [feed.images] if feed.labels is None else [feed.images, feed.labels]
    arrays = [tf.constant(array) for array in arrays]

    def order():  # Keras asks for it when an epoch begins
        yield np.concatenate([feed.rows(i) for i in range(len(feed))])

    def split(order):
        starts = tf.data.Dataset.range(0, tf.size(order, tf.int64), feed.batch_size)
        return starts.map(lambda start: order[start : start + feed.batch_size])

    def gather(rows):
        images, *labels = (tf.gather(array, rows) for array in arrays)
        return ((images, *labels),) if labels else (images,)

    dataset = tf.data.Dataset.from_generator(
        order, output_signature=tf.TensorSpec([None], tf.int64)
    )
    dataset = dataset.flat_map(split).map(gather)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(feed)))
