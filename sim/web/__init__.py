"""The explorer: a page on this computer whose sliders change the device."""
