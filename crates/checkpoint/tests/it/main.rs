//! Models in every layout: what others wrote is read, what is written is read again.

mod gguf;
mod hugging_face;
