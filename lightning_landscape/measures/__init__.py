"""What is measured: functions over tensors and objectives, and nothing of Lightning."""
