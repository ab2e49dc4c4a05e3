"""Fine-tuning on a folder of one's own images: `l3rs finetune --data FOLDER`."""
