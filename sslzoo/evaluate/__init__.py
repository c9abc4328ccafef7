"""What has a frozen encoder learned? Features of labeled images, what probes read from them, and where figures lie."""
