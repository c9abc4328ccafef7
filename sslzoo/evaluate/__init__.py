"""What has a frozen encoder learnt? Features of labelled images, what probes read from them, and where figures lie."""
