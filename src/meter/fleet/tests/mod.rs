#[cfg(feature = "redis-tests")]
mod budgets;
mod model;
#[cfg(feature = "redis-tests")]
mod with_redis;
