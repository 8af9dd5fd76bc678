"""The RabbitMQ broker: :class:`umbel.brokers.rabbitmq.broker.RabbitBroker`."""
