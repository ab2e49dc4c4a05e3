"""Fine-tuning on a folder of your own images: `l3rs finetune --data FOLDER`."""

from l3rs.extras import require

require(__name__, "images")
