"""What was found in the formats of other tools: `--format coco,labelme,yolo,geojson,csv`."""
