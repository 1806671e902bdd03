//! tollgate: a sidecar between services and Alibaba Cloud ApsaraMQ for MQTT.

pub mod answer;
pub mod cli;
pub mod config;
pub mod emulator;
pub mod message;
