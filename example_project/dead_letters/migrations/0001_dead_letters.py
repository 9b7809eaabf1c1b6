from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='DeadLetter',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('flow', models.CharField(max_length=255)),
                ('run', models.UUIDField(help_text='The run that failed.')),
                ('event', models.JSONField(help_text='The event that started it.')),
                ('step', models.CharField(blank=True, max_length=255)),
                ('error', models.TextField()),
                ('reviewed', models.BooleanField(default=False)),
            ],
        ),
    ]
