"""Boxes as labels: COCO, YOLO and Pascal VOC files, rasterised to the mask files that everything else reads.

One picture grid for all formats: pixel column c spans [c, c + 1) and row r spans [r, r + 1), measured from the
picture's top left corner. Every class counts as defect. What a picture is (normal, or which defect) stays the
layout's to say.
"""
