"""The batches of a run: every image once, in an order of seed and epoch."""

import numpy as np

from keras_ae import feed
from keras_ae.feed import Feed, binarized


class TestFeed:
    IMAGES = np.arange(23, dtype="uint8").reshape(23, 1, 1, 1)
    LABELS = np.arange(23) + 100

    def order(self, seed, epoch):
        feed = Feed(self.IMAGES, None, 7, seed)
        feed.set_epoch(epoch)
        batches = [feed[i][0] for i in range(len(feed))]
        assert [len(b) for b in batches] == [7, 7, 7, 2]
        return np.concatenate(batches).ravel().tolist()

    def test_every_image_comes_once_an_epoch(self):
        assert sorted(self.order(0, 5)) == list(range(23))

    def test_the_order_is_a_function_of_seed_and_epoch(self):
        assert self.order(1, 2) == self.order(1, 2)
        assert self.order(1, 2) != self.order(1, 3)
        assert self.order(1, 2) != self.order(2, 2)

    def test_labels_stay_with_their_images(self):
        feed = Feed(self.IMAGES, self.LABELS, 7, 0)
        for i in range(len(feed)):
            ((images, labels),) = feed[i]
            np.testing.assert_array_equal(images.ravel() + 100, labels)

    def test_binarized_batches_differ_by_epoch_and_repeat_by_seed(self):
        grey = np.full((8, 28, 28, 1), 128, "uint8")
        first, again = (Feed(grey, None, 8, 3, binarize=True) for _ in range(2))
        np.testing.assert_array_equal(first[0][0], again[0][0])
        again.set_epoch(1)
        assert (first[0][0] != again[0][0]).mean() > 0.4


def test_binarized_pixels_are_coins_of_their_grey_value():
    """`image < uniform` would draw the negative."""
    grey = np.array([0, 26, 128, 230, 255], "uint8")
    coins = binarized(np.tile(grey, (20_000, 1)), seed=0)
    assert set(np.unique(coins)) == {0, 255} and coins.dtype == np.uint8
    np.testing.assert_allclose(coins.mean(0), grey, atol=3)
    assert (coins[:, 0] == 0).all() and (coins[:, 4] == 255).all()


def test_a_large_set_is_shuffled_window_by_window(monkeypatch):
    monkeypatch.setattr(feed, "WINDOW", 1000)
    monkeypatch.setattr(feed, "BLOCK", 100)
    for n in (1000, 995):
        order = feed.epoch_order(n, 10, (0, 0))
        assert np.array_equal(np.sort(order), np.arange(n))
        assert not np.array_equal(order, feed.epoch_order(n, 10, (0, 1)))
    for window in feed.epoch_order(1000, 10, (0, 0)).reshape(10, 100):
        blocks = np.unique(window // 10)
        assert len(blocks) == 10 and np.ptp(blocks) > 9  # of neighbours, from all over the file
        assert not np.array_equal(window, np.sort(window))
    whole = feed.epoch_order(100, 10, (0, 3))
    assert np.array_equal(whole, np.random.default_rng((0, 3)).permutation(100))
