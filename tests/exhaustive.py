"""Slow tests of further cases, which `.ci/run` leaves to `-m exhaustive`.

Each of them is another case of a test that stays: one more value, loss, number
of processes, way to start them or moment of a kill. They are for a release, and
for changes of what they test.
"""

_NAMES = {
  'tests/configs/test_grpo_hub.py': (
    'test_each_fits_its_chips[qwen2.5-0.5b]',
    'test_each_fits_its_chips[qwen2.5-1.5b]',
    'test_each_fits_its_chips[qwen2.5-math-1.5b]',
    'test_each_fits_its_chips[qwen2.5-math-7b]',
    'test_each_fits_its_chips[qwen3-0.6b]',
    'test_each_fits_its_chips[llama-3.1-8b]',
  ),
  'tests/launch/test_datasets_by_process.py': (
    'test_several_processes_write_the_dataset_of_one[rejection_sampling-two hosts-4]',
    'test_several_processes_write_the_dataset_of_one[label_steps-host-2]',
    'test_each_process_does_its_share[host-label_steps]',
    'test_several_processes_write_the_dataset_of_one[label_steps-global-2]',
    'test_each_process_does_its_share[global-label_steps]',
    'test_sigterm_to_one_ends_all_after_the_chunk',
    'test_a_full_disk_of_the_first_process_ends_all',
    'test_an_error_in_one_process_ends_all[grader]',
    'test_an_error_in_one_process_ends_all[sampler]',
    'test_a_pipeline_with_rejection_sampling_runs_in_two_processes',
    'test_a_pipeline_with_labelled_steps_runs_in_two_processes',
  ),
  'tests/launch/test_processes.py': (
    'test_a_slow_host_is_named',
    'test_all_processes_go_back_to_the_last_good_checkpoint',
    'test_a_killed_process_ends_all_and_the_run_resumes_bit_equal[1]',
    'test_a_run_goes_on_in_another_number_of_processes[2 to 1]',
  ),
  'tests/launch/test_rollouts_by_host.py': (
    'test_rollouts_by_host_equal_those_of_one_process[4-1-1]',
    'test_partial_rollouts_by_host_resume_bit_equal',
  ),
  'tests/launch/test_sampling_devices.py': (
    'test_they_equal_devices_that_do_both[flags0-global-1-4]',
    'test_they_equal_devices_that_do_both[flags2-global-1-4]',
  ),
  'tests/launch/test_scripts_hosts.py': (
    'test_a_job_that_is_stopped_is_not_queued_again',
    'test_a_job_that_meets_its_time_limit_is_queued_again',
    'test_a_slice_is_preempted_and_resumed',
  ),
  'tests/rollout/test_engine_devices.py': (
    'test_two_processes_of_two_devices_sample_what_one_device_does',
  ),
  'tests/rollout/test_speculative.py': (
    'test_samples_have_the_model_s_distribution[processed]',
  ),
  'tests/runs/test_bucket_runs.py': (
    'test_processes_on_two_hosts_share_a_bucket_alone',
  ),
  'tests/runs/test_signals.py': (
    'test_ctrl_c_before_anything_is_saved_says_so[0.3]',
  ),
  'tests/stages/test_critic.py': (
    'test_a_shared_trunk_runs_with_every_option_of_a_rollout',
  ),
  'tests/stages/test_memory.py': (
    'test_the_prediction_is_what_the_compiler_allots[attention-dense]',
    'test_the_prediction_is_what_the_compiler_allots[attention-experts]',
    'test_the_prediction_is_what_the_compiler_allots[attention-large vocabulary]',
    'test_the_prediction_is_what_the_compiler_allots[none-dense]',
    'test_the_prediction_is_what_the_compiler_allots[none-large vocabulary]',
    'test_the_prediction_is_what_the_compiler_allots[block-experts]',
    'test_the_prediction_is_what_the_compiler_allots[block-large vocabulary]',
  ),
  'tests/stages/test_prm.py': (
    'test_every_kind_of_evaluation_runs_and_counts_its_tokens[mcts-rollout]',
    'test_every_kind_of_evaluation_runs_and_counts_its_tokens[mcts-rule]',
  ),
  'tests/stages/test_task_runs.py': (
    'test_real_files_run_log_and_checkpoint[countdown]',
  ),
  'tests/test_faults.py': (
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[position-2]',
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[files-2]',
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[rename-5]',
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[collection-1]',
  ),
  'tests/train/test_packed_steps.py': (
    'test_packed_rows_are_the_update_of_one_row_a_sequence[ipo]',
    'test_packed_rows_are_the_update_of_one_row_a_sequence[robust]',
    'test_packed_rows_are_the_update_of_one_row_a_sequence[helpful]',
    'test_packed_rows_are_the_update_of_one_row_a_sequence[safe]',
    'test_eight_devices_equal_one[robust]',
    'test_eight_devices_equal_one[helpful]',
    'test_eight_devices_equal_one[safe]',
  ),
  'tests/train/test_policy_step.py': (
    "test_packed_rows_are_the_update_of_one_row_a_sample[{'loss_agg_mode': 'seq-mean-token-mean', 'importance_sampling_level': 'sequence'}]",
    "test_packed_rows_are_the_update_of_one_row_a_sample[{'policy_loss': 'cispo', 'kl_estimator': 'k2', 'kl_importance_weighted': True}]",
    "test_eight_devices_equal_one[{'data': 2, 'fsdp': 2, 'tensor': 2}]",
  ),
  'tests/train/test_sequence_axis.py': (
    'test_grouped_query_attention[_grpo]',
    "test_latent_attention_experts_and_mtp[_corpus-{'sequence': 2, 'tensor': 2, 'expert': 2}]",
    "test_latent_attention_experts_and_mtp[_corpus-{'sequence': 4, 'data': 2}]",
    "test_latent_attention_experts_and_mtp[_grpo-{'sequence': 2, 'tensor': 2, 'expert': 2}]",
  ),
}
IDS = frozenset(
  f'{file}::{name}' for file, names in _NAMES.items() for name in names
)
