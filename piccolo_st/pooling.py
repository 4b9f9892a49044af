"""Where InstructionPooling was: folders that save_pretrained wrote then name it so in their modules.json."""

from piccolo_st.modeling import InstructionPooling as InstructionPooling
