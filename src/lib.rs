//! tollgate: a sidecar between services and Alibaba Cloud ApsaraMQ for MQTT.

pub mod answer;
pub mod config;
pub mod message;
pub mod emulator;
