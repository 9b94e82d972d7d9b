"""What a network is worth on images: PSNR, SSIM, and the statistics of their differences (metrics.py); which test
images the report shows, and how their frames are kept (crops.py)."""
