"""The tables."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('contenttypes', '0002_remove_content_type_name'),
    ]

    operations = [
        migrations.CreateModel(
            name='BulkAction',
            fields=[
                ('id', models.UUIDField(editable=False, help_text='That of its command.', primary_key=True, serialize=False)),
                ('kind', models.CharField(choices=[('cancel', 'cancel'), ('replay', 'replay')], max_length=10)),
                ('filters', models.TextField(help_text='JSON text: which runs.')),
                ('reason', models.TextField(default='')),
                ('created_by', models.TextField(default='', help_text='Who asks, for people.')),
                ('rate', models.FloatField(help_text='Runs a second at most, on the average.', null=True)),
                ('state', models.CharField(choices=[('running', 'running'), ('done', 'done'), ('cancelled', 'cancelled')], default='running', max_length=10)),
                ('total', models.BigIntegerField(default=0, help_text='Runs that fitted, as far as counted.')),
                ('counted', models.UUIDField(help_text='The last run that was counted; null: all are.', null=True)),
                ('seen', models.BigIntegerField(default=0, help_text='How many of them it has looked at.')),
                ('done', models.BigIntegerField(default=0, help_text='For how many it has asked.')),
                ('place', models.UUIDField(help_text='The last run that it has looked at.')),
                ('next_at', models.DateTimeField(help_text='When it may go on.')),
                ('created_at', models.DateTimeField()),
                ('ended_at', models.DateTimeField(null=True)),
            ],
            options={
                'indexes': [models.Index(condition=models.Q(('state', 'running')), fields=['next_at'], name='bulk_next')],
                'constraints': [models.CheckConstraint(condition=models.Q(models.Q(('ended_at__isnull', True), ('state', 'running')), models.Q(models.Q(('state', 'running'), _negated=True), ('ended_at__isnull', False)), _connector='OR'), name='bulk_action_ends_when_it_is_over')],
            },
        ),
        migrations.CreateModel(
            name='Event',
            fields=[
                ('subject_type', models.ForeignKey(db_constraint=False, db_index=False, help_text='The model of the row that it is about.', null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='contenttypes.contenttype')),
                ('subject_id', models.CharField(help_text="That row's primary key.", max_length=255, null=True)),
                ('id', models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ('arrival', models.BigIntegerField(help_text='Its place in the order of arrival.')),
                ('mark', models.BigIntegerField(help_text='The routing counter when it was stored.')),
                ('name', models.CharField(max_length=256)),
                ('data', models.TextField(help_text='JSON text.')),
                ('user', models.TextField(help_text='JSON text.', null=True)),
                ('key', models.CharField(default='', help_text="The sender's own id.", max_length=255)),
                ('ts', models.DateTimeField()),
                ('received_at', models.DateTimeField()),
                ('deliver_at', models.DateTimeField(help_text='Routed from then on.')),
                ('v', models.CharField(default='', max_length=64)),
                ('target', models.CharField(default='', help_text="A command's flow or run.", max_length=255)),
                ('sender', models.UUIDField(help_text='The run that sent it.', null=True)),
                ('context', models.TextField(db_default='', default='', help_text='JSON text: what middleware has captured.')),
                ('depth', models.IntegerField(default=0, help_text='How many runs deep it was sent.')),
                ('routed', models.BigIntegerField(help_text='Its number in the order of routing.', null=True)),
                ('routed_at', models.DateTimeField(help_text='When everything it asked for was done.', null=True)),
                ('error', models.TextField(default='', help_text='Why it was refused or set aside.')),
                ('shard', models.SmallIntegerField(db_default=0, default=0, help_text='Which router takes it.')),
                ('attempts', models.SmallIntegerField(db_default=0, default=0, help_text='How often its routing was begun; negative: in pieces.')),
                ('quarantined', models.BooleanField(db_default=False, default=False, help_text='Set aside, since its routing failed twice.')),
                ('withdrawn', models.BooleanField(db_default=False, default=False, help_text='Taken back before it was delivered.')),
            ],
            options={
                'permissions': [('reroute_event', 'Can have an event routed again')],
                'indexes': [models.Index(condition=models.Q(('routed_at__isnull', True)), fields=['deliver_at', 'arrival'], name='event_unrouted'), models.Index(condition=models.Q(('attempts__lt', 0), ('routed_at__isnull', True)), fields=['deliver_at'], name='event_in_pieces'), models.Index(fields=['name', 'routed'], name='event_name_routed'), models.Index(condition=models.Q(('quarantined', True)), fields=['-routed_at'], name='event_quarantined')],
            },
        ),
        migrations.CreateModel(
            name='EventKey',
            fields=[
                ('id', models.UUIDField(primary_key=True, serialize=False)),
                ('event', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, to='durable_flows.event')),
                ('created_at', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='Signature',
            fields=[
                ('id', models.UUIDField(primary_key=True, serialize=False)),
                ('event_name', models.CharField(db_index=True, max_length=256)),
                ('paths', models.TextField(help_text='JSON text: a list of paths.')),
                ('complete_from', models.BigIntegerField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='EventMatch',
            fields=[
                ('pk', models.CompositePrimaryKey('match', 'routed', blank=True, editable=False, primary_key=True, serialize=False)),
                ('match', models.UUIDField()),
                ('routed', models.BigIntegerField()),
                ('event', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, to='durable_flows.event')),
            ],
        ),
        migrations.CreateModel(
            name='Deployment',
            fields=[
                ('digest', models.CharField(max_length=64, primary_key=True, serialize=False)),
                ('flows', models.TextField(help_text='JSON text: the flows, their versions and triggers.')),
                ('first_seen_at', models.DateTimeField()),
                ('alive_at', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='Audience',
            fields=[
                ('event_name', models.CharField(max_length=256, primary_key=True, serialize=False)),
                ('until', models.DateTimeField()),
                ('since', models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Floor',
            fields=[
                ('name', models.CharField(max_length=255, primary_key=True, serialize=False)),
                ('moment', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='Counter',
            fields=[
                ('name', models.CharField(max_length=32, primary_key=True, serialize=False)),
                ('value', models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name='Tick',
            fields=[
                ('id', models.SmallIntegerField(primary_key=True, serialize=False)),
                ('ticked_at', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='Purge',
            fields=[
                ('id', models.SmallIntegerField(primary_key=True, serialize=False)),
                ('turn', models.BigIntegerField(help_text='The fencing token of whoever purges.')),
                ('held_until', models.DateTimeField(help_text="Until then it is somebody's turn.")),
                ('next_at', models.DateTimeField(help_text='When there is something to do again.')),
                ('notes', models.TextField(default='', help_text='JSON text: how far it has come.')),
            ],
        ),
        migrations.CreateModel(
            name='Run',
            fields=[
                ('subject_type', models.ForeignKey(db_constraint=False, db_index=False, help_text='The model of the row that it is about.', null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='contenttypes.contenttype')),
                ('subject_id', models.CharField(help_text="That row's primary key.", max_length=255, null=True)),
                ('id', models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ('flow', models.CharField(max_length=255)),
                ('event', models.ForeignKey(db_constraint=False, help_text='Its trigger.', on_delete=django.db.models.deletion.DO_NOTHING, related_name='runs', to='durable_flows.event')),
                ('parent', models.ForeignKey(db_constraint=False, db_index=False, help_text='The run that invoked it.', null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='children', to='durable_flows.run')),
                ('origin', models.UUIDField(help_text='The run that it does again.', null=True)),
                ('awaited', models.BooleanField(db_default=False, default=False, help_text='Somebody is to be told of its end.')),
                ('state', models.CharField(choices=[('queued', 'queued'), ('started', 'started'), ('completed', 'completed'), ('failed', 'failed'), ('cancelled', 'cancelled')], default='queued', max_length=10)),
                ('version', models.IntegerField(help_text='Of its flow; 0 if that has none, null until some process knows it.', null=True)),
                ('queue', models.CharField(max_length=255)),
                ('mark', models.BigIntegerField(help_text="Its trigger's number in the order of routing.")),
                ('since', models.BigIntegerField(help_text='The mark of the run whose first steps it has taken over.', null=True)),
                ('generation', models.IntegerField(default=0, help_text='How often it was retried.')),
                ('depth', models.IntegerField(db_default=0, default=0, help_text='How many runs deep it is, one soon after the other.')),
                ('lease', models.BigIntegerField(default=0, help_text='The last fencing token, once it has ended.')),
                ('result', models.TextField(help_text='JSON text.', null=True)),
                ('error', models.TextField(help_text='JSON text.', null=True)),
                ('reason', models.TextField(default='', help_text='Why it failed or was cancelled.')),
                ('created_at', models.DateTimeField()),
                ('started_at', models.DateTimeField(null=True)),
                ('ended_at', models.DateTimeField(null=True)),
            ],
            options={
                'permissions': [('cancel_run', 'Can cancel run'), ('retry_run', 'Can retry run'), ('rerun_run', 'Can rerun run')],
                'indexes': [models.Index(fields=['flow', '-id'], name='run_flow'), models.Index(condition=models.Q(('parent__isnull', False)), fields=['parent'], name='run_parent'), models.Index(condition=models.Q(('since__isnull', False)), fields=['origin'], name='run_taken_over'), models.Index(condition=models.Q(('subject_id__isnull', False)), fields=['subject_type', 'subject_id', '-id'], name='run_subject')],
                'constraints': [models.CheckConstraint(condition=models.Q(models.Q(('ended_at__isnull', True), ('state__in', ['queued', 'started'])), models.Q(('ended_at__isnull', False), ('state__in', ['completed', 'failed', 'cancelled'])), _connector='OR'), name='run_ends_when_it_has_ended')],
            },
        ),
        migrations.CreateModel(
            name='Due',
            fields=[
                ('run', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, primary_key=True, related_name='due', serialize=False, to='durable_flows.run')),
                ('queue', models.CharField(max_length=255)),
                ('wake_at', models.DateTimeField(null=True)),
                ('deadline_at', models.DateTimeField(help_text='When it is cancelled, whatever it does or waits for.', null=True)),
                ('due_since', models.DateTimeField(help_text='Since when it could go on, for the age of a backlog.')),
                ('state', models.CharField(choices=[('queued', 'queued'), ('running', 'running'), ('waiting', 'waiting'), ('parked', 'parked'), ('cancelling', 'cancelling')], default='queued', max_length=10)),
                ('lease', models.BigIntegerField(default=0, help_text='The fencing token; it never goes down.')),
                ('claims', models.IntegerField(default=0, help_text='Claims in a row that did not end.')),
                ('nudged', models.BooleanField(default=False, help_text='Woken while it was running.')),
                ('parked_by', models.CharField(db_default='', default='', help_text='Which code could not go on with it, or which flow nobody knew.', max_length=64)),
            ],
            options={
                'verbose_name_plural': 'due',
                'indexes': [models.Index(condition=models.Q(('wake_at__isnull', False)), fields=['queue', 'wake_at'], name='due_next'), models.Index(condition=models.Q(('wake_at__isnull', True)), fields=['parked_by', 'run'], name='due_parked'), models.Index(condition=models.Q(('deadline_at__isnull', False)), fields=['deadline_at'], name='due_deadline')],
                'constraints': [models.CheckConstraint(condition=models.Q(models.Q(('state', 'parked'), ('wake_at__isnull', True)), models.Q(models.Q(('state', 'parked'), _negated=True), ('wake_at__isnull', False)), _connector='OR'), name='due_only_the_parked_have_no_wake_time')],
            },
        ),
        migrations.CreateModel(
            name='Step',
            fields=[
                ('pk', models.CompositePrimaryKey('run_id', 'key', blank=True, editable=False, primary_key=True, serialize=False)),
                ('run', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='steps', to='durable_flows.run')),
                ('key', models.CharField(max_length=255)),
                ('seq', models.IntegerField(help_text="Its place among the run's recorded steps.")),
                ('kind', models.CharField(choices=[('run', 'run'), ('send', 'send'), ('sleep', 'sleep'), ('wait', 'wait'), ('invoke', 'invoke'), ('map', 'map'), ('patch', 'patch'), ('race', 'race'), ('intent', 'intent'), ('input', 'input'), ('undo', 'undo')], max_length=10)),
                ('state', models.CharField(choices=[('done', 'done'), ('failed', 'failed'), ('skipped', 'skipped')], max_length=10)),
                ('output', models.TextField(help_text='JSON text.', null=True)),
                ('error', models.TextField(help_text='JSON text.', null=True)),
                ('until', models.DateTimeField(help_text='The end of a sleep, fixed when it began.', null=True)),
                ('mark', models.BigIntegerField(help_text='The routing counter when it was recorded.')),
                ('lease', models.BigIntegerField(help_text='The fencing token of the slice that recorded it.')),
                ('attempt', models.IntegerField(default=1, help_text='The attempt that was recorded.')),
                ('started_at', models.DateTimeField()),
                ('ended_at', models.DateTimeField()),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(models.Q(('error__isnull', True), ('state__in', ['done', 'skipped'])), models.Q(('error__isnull', False), ('state', 'failed')), _connector='OR'), name='step_fails_with_an_error')],
            },
        ),
        migrations.CreateModel(
            name='Attempt',
            fields=[
                ('pk', models.CompositePrimaryKey('run_id', 'key', 'n', blank=True, editable=False, primary_key=True, serialize=False)),
                ('run', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='attempts', to='durable_flows.run')),
                ('key', models.CharField(max_length=255)),
                ('n', models.IntegerField()),
                ('generation', models.IntegerField(help_text='Each retry of the run has attempts of its own.')),
                ('error', models.TextField(help_text='JSON text.')),
                ('failed_at', models.DateTimeField()),
                ('next_at', models.DateTimeField(help_text='When the next one may begin.', null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Admission',
            fields=[
                ('pk', models.CompositePrimaryKey('event_id', 'flow', blank=True, editable=False, primary_key=True, serialize=False)),
                ('event', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='admissions', to='durable_flows.event')),
                ('flow', models.CharField(max_length=255)),
                ('verdict', models.CharField(choices=[('skip', 'skip'), ('join', 'join')], max_length=10)),
                ('reason', models.TextField()),
                ('run', models.ForeignKey(db_constraint=False, db_index=False, help_text='The run that it joined.', null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='durable_flows.run')),
                ('decided_at', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='RunWarning',
            fields=[
                ('pk', models.CompositePrimaryKey('run_id', 'about', blank=True, editable=False, primary_key=True, serialize=False)),
                ('run', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='warnings', to='durable_flows.run')),
                ('about', models.CharField(help_text='The step or option concerned.', max_length=255)),
                ('message', models.TextField()),
                ('warned_at', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='Wait',
            fields=[
                ('id', models.UUIDField(primary_key=True, serialize=False)),
                ('run', models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='waits', to='durable_flows.run')),
                ('key', models.CharField(help_text="The step's key, or the rule's number.", max_length=255)),
                ('kind', models.CharField(choices=[('step', 'step'), ('cancel', 'cancel'), ('child', 'child'), ('item', 'item')], max_length=10)),
                ('event_name', models.CharField(max_length=256)),
                ('paths', models.TextField(default='[]', help_text='JSON text: the paths it compares.')),
                ('criteria', models.TextField(default='', help_text='What it matches, for people.')),
                ('expression', models.TextField(db_default='', default='', help_text='What its paths cannot say, in CEL.')),
                ('match', models.UUIDField(help_text="Hash of the event's name, the paths and their values; or the awaited run.")),
                ('cascade', models.BooleanField(db_default=True, default=True, help_text='The awaited run is cancelled with this one.')),
                ('eligible_from', models.BigIntegerField()),
                ('routed_since', models.DateTimeField(null=True)),
                ('received_since', models.DateTimeField(null=True)),
                ('expires_at', models.DateTimeField()),
                ('created_at', models.DateTimeField()),
                ('settled_at', models.DateTimeField(null=True)),
                ('outcome', models.CharField(choices=[('event', 'event'), ('timeout', 'timeout'), ('closed', 'closed'), ('completed', 'completed'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('skipped', 'skipped'), ('gone', 'gone'), ('cut', 'cut')], default='', max_length=10)),
                ('event', models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='durable_flows.event')),
            ],
            options={
                'indexes': [models.Index(condition=models.Q(('settled_at__isnull', True)), fields=['match', 'id'], name='wait_pending'), models.Index(condition=models.Q(('event__isnull', False), ('event_name', 'flows/signal.sent')), fields=['match', 'event'], name='wait_signal_used')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('event_name', 'flows/signal.sent'), ('settled_at__isnull', True)), fields=('match',), name='wait_signal_taken')],
            },
        ),
        migrations.CreateModel(
            name='Fanout',
            fields=[
                ('id', models.UUIDField(primary_key=True, serialize=False)),
                ('run', models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='fanouts', to='durable_flows.run')),
                ('key', models.CharField(help_text="The step's key.", max_length=255)),
                ('generation', models.IntegerField(help_text='That of the run: a retry maps anew.')),
                ('total', models.IntegerField(help_text='How many children there are to be.')),
                ('started', models.IntegerField(help_text='How many have been let begin.')),
                ('ended', models.IntegerField(help_text='How many have ended.')),
                ('created_at', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='Approval',
            fields=[
                ('id', models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ('run', models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='approvals', to='durable_flows.run')),
                ('key', models.CharField(help_text="The step's key.", max_length=255)),
                ('question', models.TextField()),
                ('permission', models.CharField(default='', help_text='That who decides must have.', max_length=255)),
                ('assignees', models.TextField(default='[]', help_text='JSON text: names of users.')),
                ('form', models.CharField(default='', help_text='The dotted path of a form.', max_length=255)),
                ('created_at', models.DateTimeField()),
            ],
            options={
                'permissions': [('decide_approval', 'Can decide approvals')],
            },
        ),
    ]
