"""The batches of a run: every image once, in an order of seed and epoch."""

import numpy as np

from keras_ae import feed
from keras_ae.augmentation import Augment
from keras_ae.feed import Feed, binarized


def shift_between(image, moved):
    """By how many pixels (down, right) an image was moved, its edges repeated; None if it was not."""
    places = np.arange(28)
    for down in range(-3, 4):
        for right in range(-3, 4):
            rows, columns = (np.clip(places - by, 0, 27) for by in (down, right))
            if np.array_equal(image[rows][:, columns], moved):
                return down, right
    return None


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

    def test_augmented_batches(self, digits, monkeypatch):
        """Flips and shifts against their definition; drawn anew in each epoch, and the same for a seed."""
        images = digits[0][:40]
        fed = {}
        for names in (("flip",), ("shift",), ("flip", "shift")):
            feed = Feed(images, None, 40, 3, shuffle=False, augment=Augment(names))
            fed[names] = feed[0][0]
            np.testing.assert_array_equal(fed[names], feed[0][0])
            feed.set_epoch(1)
            assert (feed[0][0] != fed[names]).any()
        flipped = (fed["flip",] == images[:, :, ::-1]).all((1, 2, 3))
        assert (flipped | (fed["flip",] == images).all((1, 2, 3))).all()
        assert 5 < flipped.sum() < 35
        assert all(shift_between(*pair) for pair in zip(images, fed["shift",]))
        assert len({shift_between(*pair) for pair in zip(images, fed["shift",])}) > 10
        # Of several processes, each has its rows of the batch that one has.
        monkeypatch.setattr(
            "keras_ae.distributed.local_rows", lambda n, devices: np.arange(n)[1::2]
        )
        feed = Feed(images, None, 40, 3, shuffle=False, augment=Augment(("flip", "shift")))
        np.testing.assert_array_equal(feed[0][0], fed["flip", "shift"][1::2])

    def test_augmented_colours(self):
        images = np.full((30, 8, 8, 3), (200, 120, 60), "uint8")
        feed = Feed(images, None, 30, 3, shuffle=False, augment=Augment(("colour",)))
        changed = feed[0][0].astype(int)
        assert (changed == changed[:, :1, :1]).all()  # one colour stays one
        assert len(np.unique(changed[:, 0, 0], axis=0)) == 30
        assert 5 < np.abs(changed - images).mean() < 40
        floats = Feed(images / np.float32(255), None, 30, 3, shuffle=False, augment=feed.augment)
        assert floats[0][0].dtype == np.float32
        np.testing.assert_allclose(floats[0][0] * 255, changed, atol=0.51)

    def test_binarized_batches_differ_by_epoch_and_repeat_by_seed(self):
        grey = np.full((8, 28, 28, 1), 128, "uint8")
        first, again = (Feed(grey, None, 8, 3, binarize=True) for _ in range(2))
        np.testing.assert_array_equal(first[0][0], again[0][0])
        again.set_epoch(1)
        assert (first[0][0] != again[0][0]).mean() > 0.4


def test_floats_and_other_whole_numbers_are_binarized_alike():
    grey = np.random.default_rng(1).integers(0, 256, (50, 8, 8, 1), np.uint8)
    expected = binarized(grey, seed=0)
    for images in (grey / np.float32(255), grey.astype("int64")):
        same = binarized(images, seed=0)
        assert same.dtype == np.uint8 and (same == expected).mean() > 0.999  # rounding


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
