"""The same weights in torchvision's own detectors: same losses, gradients and detections."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.roi_heads import paste_masks_in_image

from castling import create_model

K = 5
SHORT = 64  # side of all images, so that torchvision resizes none
NAMES = ["retinanet_pico", "fcos_pico", "faster_rcnn_pico", "mask_rcnn_pico"]


class Levels(nn.Module):
    """Backbone and neck as torchvision wants them."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = [model], names  # in a list: no parameters of its own
        self.out_channels = model.neck.layer_blocks[0][0].out_channels

    def forward(self, images):
        return OrderedDict(zip(self.names, self.model[0].levels(images), strict=True))


def theirs(name, ours):
    """torchvision's detector as its documentation builds it, with the weights of ``ours``."""
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": SHORT}
    plain["_skip_resize"] = True  # in training it would draw a size, and with it a random number
    one_stage = Levels(ours, ["p3", "p4", "p5", "p6", "p7"])
    two_stages = Levels(ours, ["0", "1", "2", "3", "pool"])
    sizes = {
        "rpn_pre_nms_top_n_train": 50,
        "rpn_pre_nms_top_n_test": 50,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 50,
        "box_batch_size_per_image": 32,
    }
    if name == "retinanet_pico":
        model = detection.RetinaNet(one_stage, K, detections_per_img=100, **plain)
        model.head.load_state_dict(ours.head.head.state_dict())
    elif name == "fcos_pico":
        head = detection.fcos.FCOSHead(64, 1, K, num_convs=1)
        model = detection.FCOS(one_stage, K, head=head, **plain)
        model.head.load_state_dict(ours.head.head.state_dict())
    else:
        box_head = detection.faster_rcnn.TwoMLPHead(16 * 49, 32)
        predictor = detection.faster_rcnn.FastRCNNPredictor(32, K + 1)
        parts = {"box_head": box_head, "box_predictor": predictor, **sizes, **plain}
        if name == "faster_rcnn_pico":
            model = detection.FasterRCNN(two_stages, **parts)
        else:
            masks = detection.mask_rcnn.MaskRCNNHeads(16, [16], 1)
            last = detection.mask_rcnn.MaskRCNNPredictor(16, 16, K + 1)
            model = detection.MaskRCNN(two_stages, mask_head=masks, mask_predictor=last, **parts)
        model.rpn.load_state_dict(ours.rpn.state_dict())
        model.roi_heads.load_state_dict(ours.roi_heads.state_dict())
    return model


def pair(name):
    """Ours and torchvision's, with outputs that differ from place to place."""
    ours = create_model(f"{name}/test_resnet", num_classes=K)
    for module in ours.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    return ours, theirs(name, ours)


def targets(masks, size=(64, 128)):
    boxes = [[[4, 6, 60, 60], [30, 20, 100, 63], [90, 5, 121, 40]], [], [[10, 10, 40, 42]]]
    found = []
    for image in boxes:
        box = torch.tensor(image, dtype=torch.float32).reshape(-1, 4)
        target = {"boxes": box, "labels": torch.arange(len(box)) % K}
        if masks:
            target["masks"] = torch.zeros(len(box), *size, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(target["masks"], box.int().tolist(), strict=True):
                mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        found.append(target)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_detections_equal_torchvisions_own(name):
    ours, reference = pair(name)
    ours.eval(), reference.eval()
    sizes = [(64, 128), (64, 101), (90, 64)]
    images = [torch.randn(3, *size) for size in sizes]
    batch = torch.zeros(3, 3, 96, 128)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    with torch.no_grad():
        wanted = reference(images)
        found = ours.decode(ours(batch), (96, 128), torch.tensor(sizes))
    shift = 0 if name in ("retinanet_pico", "fcos_pico") else 1
    assert min(len(each["scores"]) for each in wanted) > 5
    assert {len(label.unique()) for label in found["labels"]} != {1}
    for i, each in enumerate(wanted):
        n = len(each["scores"])
        torch.testing.assert_close(found["boxes"][i, :n], each["boxes"])
        torch.testing.assert_close(found["scores"][i, :n], each["scores"])
        assert torch.equal(found["labels"][i, :n], each["labels"] - shift)
        assert not found["scores"][i, n:].any()
        if ours.has_masks:
            masks = found["masks"][i, :n, None]
            pasted = paste_masks_in_image(masks, found["boxes"][i, :n], sizes[i])
            torch.testing.assert_close(pasted, each["masks"])


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_torchvisions_own(name):
    ours, reference = pair(name)
    ours.train(), reference.train()
    images = torch.randn(3, 3, 64, 128)
    wanted_targets = targets(ours.has_masks)
    shift = 0 if name in ("retinanet_pico", "fcos_pico") else 1
    moved = [{**each, "labels": each["labels"] + shift} for each in wanted_targets]

    state = {key: value.clone() for key, value in ours.state_dict().items()}
    torch.manual_seed(3)
    wanted = reference(list(images), moved)
    sum(wanted.values()).backward()
    after = {key: value.clone() for key, value in ours.state_dict().items()}
    gradients = [p.grad for p in ours.backbone.parameters()]
    ours.zero_grad(set_to_none=True)
    ours.load_state_dict(state)  # running statistics of the backbone's BatchNorm moved

    torch.manual_seed(3)
    found = ours.losses(images, wanted_targets)
    sum(found.values()).backward()
    assert sorted(x.item() for x in found.values()) == sorted(x.item() for x in wanted.values())
    assert all(value > 0 for value in found.values())
    for parameter, gradient in zip(ours.backbone.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, after[key]), key
